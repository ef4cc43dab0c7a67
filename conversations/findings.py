"""What a team should know before it trusts the tables, in ids and counts alone.

Old code that still writes, what it left out, blobs that were set aside, what legacy holds that no
load reads: `manage.py conversations findings`. Nothing is read but what databases count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Count, Max, QuerySet

from conversations import conf
from conversations.batches import BATCH
from conversations.foreign import quarantine_class
from conversations.models import ConversationConflict, ConversationState, in_pages
from conversations.runs.records import Note
from conversations.stores.base import Blobs, Leftovers
from conversations.stores.normalized import probed_between
from conversations.stores.registry import configured_store
from conversations.sync import Target
from conversations.sync.runs import last_finished
from flags import records
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
    """What was found. Every value is a count but for the times, and the notes' ids and reasons.

    `foreign_writes` are conversations that old code wrote since the rollout left phase legacy
    (0 where no such step is recorded) and the tables took in, `last_foreign` when the last one
    was; `pending` are those that it wrote and they have not taken in yet.
    `omissions` are conversations of which it left messages out. `conflicts` counts records by
    kind; `quarantined` counts conversations by the class of the reason. `failures` is what the
    latest finished sync to the tables could not carry over.
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


def findings() -> Findings:
    """Return what there is to know. Takes no lock; counts every blob, which may take a while."""
    legacy = configured_store()
    since = _left_legacy()
    written = _states().none() if since is None else _states().filter(foreign_written_at__gte=since)
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


def _left_legacy() -> datetime | None:
    """Return when the rollout last left phase legacy; None when that is not recorded."""
    left = records.rows().filter(from_phase=Phase.LEGACY, to_phase__gt=Phase.LEGACY)
    found: datetime | None = left.order_by("-pk").values_list("at", flat=True).first()
    return found


def pending() -> Iterator[str]:
    """Yield the conversations that others wrote into legacy, and the tables have not taken in."""
    legacy = configured_store()
    if legacy is None:
        return
    last = 0
    while True:
        page = list(
            _states().filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:BATCH]
        )
        if not page:
            return
        for _, name, known, now in probed_between(legacy.probe(), low=last, high=page[-1]):
            if legacy.judge(now, known) != known:
                yield name
        last = page[-1]


def quarantined() -> list[Aside]:
    """Return the conversations of which blobs were set aside, with the reasons, by id."""
    rows = _conflicts().filter(kind=Kind.QUARANTINED)
    found = rows.values_list("conversation__conversation_id", "reason").annotate(Count("pk"))
    return [
        Aside(name, reason, quarantine_class(reason), records)
        for name, reason, records in found.order_by("conversation__conversation_id", "reason")
    ]


def _omissions() -> Iterator[int]:
    """Yield the keys of conversations of which old code left messages out, once a record."""
    merged = _conflicts().filter(kind=Kind.MERGED)
    for conversation, detail in in_pages(merged, "conversation_id", "detail"):
        if json.loads(detail).get("omitted"):
            yield conversation


def _states() -> QuerySet[ConversationState]:
    return ConversationState.rows.using(conf.alias())


def _conflicts() -> QuerySet[ConversationConflict]:
    return ConversationConflict.rows.using(conf.alias())
