"""The end of a rollout: legacy is given up, archived and removed; and taken back.

From then on no load and no save looks into it: `conversations.stores.registry.legacy_store`
answers None. What old code writes there all the same is found by `conversations verify`, taken
in by `conversations sync --to tables`, and removed by retiring again.
"""

from conversations.retirement.archives import Archived
from conversations.retirement.removal import Holdings, Removed, finished, holdings, retire
from conversations.retirement.requirements import conditions
from conversations.retirement.restoring import Restored, Result, restore, restore_archive

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
