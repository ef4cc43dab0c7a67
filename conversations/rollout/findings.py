"""Facts that a team should know before it trusts the tables, in ids and counts alone.

Old code that still writes, messages it left out, blobs that were set aside, rows of legacy that no
load reads: `manage.py conversations findings`. The databases count them; no content is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Count, F, Max, Q, QuerySet

from conversations import conf
from conversations.models import ConversationConflict, ConversationState, in_pages
from conversations.rollout.runs.records import Note
from conversations.rollout.sync import Target
from conversations.rollout.sync.runs import last_finished
from conversations.routing.ids import BATCH
from conversations.routing.standing import truth_by_token_value
from conversations.routing.truth import Truth
from conversations.stores.normalized import find_rows_with_token
from conversations.stores.registry import configured_store
from conversations.stores.types import Blobs, Leftovers
from conversations.writing.ingest import quarantine_class
from flags import records
from flags.connections import reconnecting
from flags.phases import Phase

Kind = ConversationConflict.Kind


@dataclass(frozen=True, slots=True)
class Aside:
    """Blobs of one conversation that were set aside for one reason; its class is a stable slug.

    Classes: "unreadable", "other_owner", "empty", "other".
    """

    conversation_id: str
    reason: str
    reason_class: str
    records: int


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings. Every value is a count, except the times, and the notes' ids and reasons.

    `foreign_writes` counts conversations that old code wrote since the rollout left phase legacy,
    and that the tables ingested (0 if no such step is recorded). `last_foreign` is the time of the
    last one. `pending` counts those that the tables have not ingested yet. `omissions` counts
    conversations of which old code left messages out. `conflicts` counts records by kind,
    `quarantined` conversations by the class of the reason. `failures` are the conversations that
    the latest finished sync to the tables could not carry over.
    """

    foreign_writes: int = 0
    last_foreign: datetime | None = None
    pending: int = 0
    omissions: int = 0
    conflicts: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[Note] = ()
    blobs: Blobs = field(default_factory=Blobs)
    leftovers: Leftovers = field(default_factory=Leftovers)


@reconnecting
def findings() -> Findings:
    """Return all findings. Takes no lock; counts every blob, which may take a while."""
    legacy = configured_store()
    since = _left_legacy()
    written = _states().none() if since is None else written_by_others(since)
    last = written.aggregate(last=Max("foreign_written_at"))["last"]
    kinds = _conflicts().values_list("kind").annotate(Count("pk")).order_by("kind")
    asides = sorted({(one.conversation_id, one.reason_class) for one in quarantined()})
    synced = last_finished(Target.TABLES) if legacy else None
    return Findings(
        foreign_writes=written.count(),
        last_foreign=last,
        pending=sum(1 for _ in pending()),
        omissions=len(set(_omissions())),
        conflicts=dict(kinds),
        quarantined=dict(Counter(kind for _, kind in asides)),
        failures=synced.failures if synced else (),
        blobs=legacy.blobs() if legacy else Blobs(),
        leftovers=legacy.leftovers() if legacy else Leftovers(),
    )


def written_by_others(since: datetime) -> QuerySet[ConversationState]:
    """Return the conversations that others wrote into legacy since then, as far as that is certain.

    A merged write was certainly written by others. A conversation that had no row yet, and was
    ingested as legacy had it, may be ours. In phase legacy, our own saves make no row and leave no
    mark. So it counts only if it was written after every save had begun to write the tables.
    """
    taken_in = Q(foreign_written_at__lte=F("created_at"))
    sure = ~taken_in
    alone = records.tables_written_since()
    if alone is not None:
        sure |= Q(foreign_written_at__gte=alone)
    return _states().filter(sure, foreign_written_at__gte=since)


def _left_legacy() -> datetime | None:
    """Return when the rollout last left phase legacy; None if no record says so."""
    left = records.rows().filter(from_phase=Phase.LEGACY, to_phase__gt=Phase.LEGACY)
    found: datetime | None = left.order_by("-pk").values_list("at", flat=True).first()
    return found


@reconnecting
def pending() -> Iterator[str]:
    """Yield the conversations that others wrote into legacy and the tables have not ingested."""
    legacy = configured_store()
    if legacy is None:
        return
    last = 0
    while page := find_rows_with_token(legacy.token_sql(), after=last, limit=BATCH):
        for row in page:
            if truth_by_token_value(row, legacy, row.token_value) == Truth.MERGE:
                yield row.conversation_id
        last = page[-1].pk


@reconnecting
def quarantined() -> list[Aside]:
    """Return the conversations with blobs that were set aside, with the reasons, by id."""
    rows = _conflicts().filter(kind=Kind.QUARANTINED)
    found = rows.values_list("conversation__conversation_id", "reason").annotate(Count("pk"))
    return [
        Aside(name, reason, quarantine_class(reason), records)
        for name, reason, records in found.order_by("conversation__conversation_id", "reason")
    ]


def _omissions() -> Iterator[int]:
    """Yield the key of a conversation for each record that says old code left messages out."""
    merged = _conflicts().filter(kind=Kind.MERGED)
    for conversation, detail in in_pages(merged, "conversation_id", "detail"):
        if json.loads(detail).get("omitted"):
            yield conversation


def _states() -> QuerySet[ConversationState]:
    return ConversationState.rows.using(conf.alias())


def _conflicts() -> QuerySet[ConversationConflict]:
    return ConversationConflict.rows.using(conf.alias())
