"""The gates that conversations put before the steps of a rollout; see `flags.gates`."""
