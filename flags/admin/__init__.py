"""The admin of the rollout: switches, transitions, processes and health."""

from flags.admin.rollout import ProcessAdmin, TransitionAdmin
from flags.admin.switches import register

__all__ = ["ProcessAdmin", "TransitionAdmin", "register"]
