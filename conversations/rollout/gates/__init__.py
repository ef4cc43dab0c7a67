"""The gates of conversations before the steps of a rollout; see `flags.gates`."""
