"""Which store tells the truth about one conversation. Pure: numbers and tokens in, a verdict out.

A switch states a preference; the conversation's own row decides. It carries `revision` (the
last write that the tables hold), `legacy_revision` (the last one legacy is known to hold) and
`legacy_token` (what legacy looked like then).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Truth(StrEnum):
    """Where the latest acknowledged content of a conversation is."""

    LEGACY = "legacy"
    NORMALIZED = "normalized"
    BOTH = "both"
    # Somebody else wrote into legacy: what it holds must be merged into the tables first.
    MERGE = "merge"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a conversation's row says of both stores."""

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
