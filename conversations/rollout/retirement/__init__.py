"""The end of a rollout: legacy is given up, archived and removed; or taken back.

From then on no load and no save looks into it: `conversations.routing.standing.decide`
answers None. What old code writes there all the same is found by `conversations verify`, taken
in by `conversations sync --to tables`, and removed by retiring again.
"""

from conversations.rollout.retirement.archives import Archived
from conversations.rollout.retirement.remove import Holdings, Removed, finished, holdings, retire
from conversations.rollout.retirement.requirements import conditions
from conversations.rollout.retirement.restore import Restored, Result, restore, restore_archive

__all__ = [
    "Archived",
    "Holdings",
    "Removed",
    "Restored",
    "Result",
    "conditions",
    "finished",
    "holdings",
    "restore",
    "restore_archive",
    "retire",
]
