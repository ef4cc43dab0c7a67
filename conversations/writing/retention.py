"""The retention rule: which superseded versions of messages `conversations prune` removes.

A version is removed in two cases. It was superseded longer than `KEEP_SUPERSEDED` ago. Or more
than `KEEP_VERSIONS` later versions of its message are superseded as well, at any age: a streamed
reply piles them up. The versions that were current at `legacy_revision` stay, since old code's
next blob is merged against them. A removed message that was pruned cannot be restored, and its
key is free again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from conversations import conf
from conversations.models import ConversationMessage, ConversationState
from conversations.routing.ids import BATCH, failure, in_batches
from conversations.routing.locks import lock
from conversations.routing.standing import in_transaction
from flags.connections import reconnecting
from memory.models import MemoryMetadata


@dataclass(frozen=True, slots=True)
class Pruned:
    """The number of versions removed from a conversation; `reason` says why it failed."""

    conversation_id: str
    versions: int
    reason: str = ""


@reconnecting
def prune(
    ids: Iterable[str] | None = None, *, dry_run: bool = False, now: datetime | None = None
) -> Iterator[Pruned]:
    """Remove superseded versions by the rule; yield each conversation that has any to remove.

    One conversation is one transaction under its lock. One that fails is reported, and the walk
    continues. A `dry_run` only counts.
    """
    moment = now or timezone.now()
    for conversation_id in _with_superseded(None if ids is None else list(ids)):
        try:
            with in_transaction(conversation_id):
                row = lock(conversation_id)
                versions = 0 if row is None else _prune_one(row, moment, dry_run=dry_run)
        except Exception as error:  # noqa: BLE001 - one that fails keeps no other from its turn
            yield Pruned(conversation_id, 0, failure(conversation_id, error))
        else:
            if versions:
                yield Pruned(conversation_id, versions)


def _with_superseded(ids: list[str] | None) -> Iterator[str]:
    rows = ConversationState.rows.using(conf.alias())
    messages = ConversationMessage.rows.using(conf.alias()).filter(superseded_in__isnull=False)
    if ids is not None:
        superseded = messages.filter(conversation_id=OuterRef("pk"))
        yield from in_batches(rows.filter(Exists(superseded), conversation_id__in=ids))
        return
    last = 0
    while True:
        # By message, not by row with EXISTS: every page would then test all earlier rows.
        behind = messages.filter(conversation_id__gt=last).order_by("conversation_id")
        page = list(behind.values_list("conversation_id", flat=True).distinct()[:BATCH])
        yield from in_batches(rows.filter(pk__in=page))
        if len(page) < BATCH:
            return
        last = page[-1]


def _prune_one(row: ConversationState, now: datetime, *, dry_run: bool) -> int:
    alias = conf.alias()
    versions = list(_to_remove(row, now).values_list("pk", flat=True))
    if dry_run:
        return len(versions)
    for start in range(0, len(versions), BATCH):
        batch = versions[start : start + BATCH]
        MemoryMetadata.objects.using(alias).filter(message_id__in=batch)._raw_delete(alias)
        ConversationMessage.rows.using(alias).filter(pk__in=batch)._raw_delete(alias)
    return len(versions)


def _to_remove(row: ConversationState, now: datetime) -> QuerySet[ConversationMessage]:
    """Return the versions that the rule removes, under the conversation's lock."""
    superseded = _messages(row).filter(superseded_in__isnull=False)
    # How many later versions of the same message are superseded as well.
    newest_first = Window(
        RowNumber(), partition_by=[F("sequence")], order_by=F("superseded_in").desc()
    )
    counted = superseded.annotate(place=newest_first)
    surplus = counted.filter(place__gt=conf.get("KEEP_VERSIONS"))
    old = Q(superseded_at__lt=now - conf.get("KEEP_SUPERSEDED"))
    base = Q(added_in__lte=row.legacy_revision, superseded_in__gt=row.legacy_revision)
    return superseded.filter(old | Q(pk__in=surplus.values("pk"))).exclude(base).order_by("pk")


def _messages(row: ConversationState) -> QuerySet[ConversationMessage]:
    return ConversationMessage.rows.using(conf.alias()).filter(conversation_id=row.pk)
