"""Which store tells the truth about one conversation. Pure: numbers and tokens in, a verdict out.

A switch states a preference; the conversation's own row decides. Its `revision` is the last write
in the tables, its `legacy_revision` the last one in legacy. Its `legacy_token` identifies legacy's
content at that time. The plan of the phase decides which stores a write goes to and which a load
prefers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from flags.phases import Plan, StoreName


class Truth(StrEnum):
    """Where the latest acknowledged content of a conversation is."""

    LEGACY = "legacy"
    NORMALIZED = "tables"
    BOTH = "both"
    # Old code wrote into legacy: its content must be merged into the tables first.
    MERGE = "merge"


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of both stores, from a conversation's row."""

    revision: int
    legacy_revision: int

    @property
    def next(self) -> int:
        """Return the number of the next write: above both."""
        return max(self.revision, self.legacy_revision) + 1


def verdict(numbers: Numbers | None, *, token_matches: bool) -> Truth:
    """Return where the truth is. `numbers` is None when the conversation has no row.

    Without a row legacy is the truth, as old code reads it. With one, the side with the
    higher number is, exactly; equal numbers mean equal content.
    """
    if numbers is None:
        return Truth.LEGACY
    if not token_matches:
        return Truth.MERGE
    if numbers.revision == numbers.legacy_revision:
        return Truth.BOTH
    return Truth.NORMALIZED if numbers.revision > numbers.legacy_revision else Truth.LEGACY


def read_order(plan: Plan, truth: Truth) -> tuple[StoreName, ...]:
    """Return the stores that may answer a load, best first: only those that are current."""
    if truth == Truth.BOTH:
        other = next(name for name in StoreName if name != plan.reads)
        return (plan.reads, other)
    if truth == Truth.LEGACY:
        return (StoreName.LEGACY,)
    return (StoreName.NORMALIZED,)


def may_write_legacy_blindly(plan: Plan) -> bool:
    """Whether a save may go to legacy when the conversation's row cannot be read.

    In phases where legacy decides, a failure of the tables must not stop a save. Its blob carries
    no mark, so it is merged later like a blob of old code.
    """
    return plan.decides == StoreName.LEGACY
