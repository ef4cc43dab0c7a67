"""The parts of `manage.py demo`: conversations, the rollout that carries them over, figures."""
