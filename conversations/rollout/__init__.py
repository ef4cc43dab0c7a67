"""The parts that only a rollout needs, and the answers of this app to flags."""
