"""The results of a verification: ids, kinds and places, never content."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Where a conversation stands, or what is wrong with it."""

    EQUAL = "equal in both stores"
    TABLES_ONLY = "in the tables only"
    LEGACY_BEHIND = "legacy is behind"
    # Legacy has content that the tables get at the next write, load or sync.
    PENDING = "pending: legacy is ahead, or other code wrote into it"
    DELETED = "deleted; legacy holds a late write of it"
    QUARANTINED = "has a blob that was set aside"
    MISSING_IN_TABLES = "missing in the tables"
    MISSING_IN_LEGACY = "missing in legacy"
    DIFFERENT = "different in the two stores"
    DIGEST_LIES = "rows that differ from their digests or counts"
    UNREADABLE = "unreadable"
    UNKNOWN = "in no store"
    FAILED = "not verified"


MISMATCHES = frozenset(
    {
        Kind.MISSING_IN_TABLES,
        Kind.MISSING_IN_LEGACY,
        Kind.DIFFERENT,
        Kind.DIGEST_LIES,
        Kind.UNREADABLE,
    }
)
FAILURES = frozenset({Kind.UNKNOWN, Kind.FAILED})
IN_ORDER = frozenset({Kind.EQUAL, Kind.TABLES_ONLY, Kind.LEGACY_BEHIND, Kind.DELETED})


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of one conversation: kinds, and the places of the faults."""

    conversation_id: str
    kinds: tuple[Kind, ...]
    places: tuple[str, ...] = ()

    @property
    def mismatched(self) -> bool:
        """Whether the stores do not hold what they should."""
        return not MISMATCHES.isdisjoint(self.kinds)

    @property
    def in_order(self) -> bool:
        """Whether the tables hold the latest content, and legacy's content agrees with it."""
        return set(self.kinds) <= IN_ORDER

    @property
    def failed(self) -> bool:
        """Whether the conversation could not be verified."""
        return not FAILURES.isdisjoint(self.kinds)
