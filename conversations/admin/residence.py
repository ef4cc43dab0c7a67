"""The stores that hold a conversation, by its row. Pure."""

from __future__ import annotations

from enum import StrEnum

from django.db.models import F, Q


class Residence(StrEnum):
    """The store, or stores, that hold a conversation's latest revision."""

    LEGACY = "legacy"
    TABLES = "tables"
    BOTH = "both"
    LEGACY_BEHIND = "legacy behind"
    TABLES_BEHIND = "tables behind"

    @property
    def explanation(self) -> str:
        """Return the residence in a sentence."""
        return EXPLANATIONS[self]


EXPLANATIONS = {
    Residence.LEGACY: "Only legacy holds this conversation.",
    Residence.TABLES: "Only the tables hold this conversation.",
    Residence.BOTH: "Both stores hold the latest revision.",
    Residence.LEGACY_BEHIND: "The tables hold the latest revision, legacy an earlier one.",
    Residence.TABLES_BEHIND: "Legacy holds the latest revision, the tables an earlier one.",
}


def residence_of(revision: int, legacy_revision: int) -> Residence:
    """Return the residence of a conversation with these two numbers in its row."""
    if legacy_revision == 0:
        return Residence.TABLES
    if revision == 0:
        return Residence.LEGACY
    if revision == legacy_revision:
        return Residence.BOTH
    return Residence.LEGACY_BEHIND if revision > legacy_revision else Residence.TABLES_BEHIND


# The same as conditions on rows of conversation_states.
CONDITIONS = {
    Residence.LEGACY: Q(revision=0, legacy_revision__gt=0),
    Residence.TABLES: Q(legacy_revision=0),
    Residence.BOTH: Q(legacy_revision__gt=0, revision=F("legacy_revision")),
    Residence.LEGACY_BEHIND: Q(legacy_revision__gt=0, revision__gt=F("legacy_revision")),
    Residence.TABLES_BEHIND: Q(revision__gt=0, revision__lt=F("legacy_revision")),
}
