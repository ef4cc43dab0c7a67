"""The parts of `manage.py demo`: conversations, the rollout that moves them, figures."""
