"""Shadow reads: some loads are compared with the content of the other store.

They happen in the phases that write both stores, while performance_monitoring is on, for
`SHADOW_SHARE` of the loads. The caller's load stays as it is.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from django.db import Error, connections
from django.utils import timezone

from conversations import conf
from conversations.content.differences import differences
from conversations.content.document import Document
from conversations.exceptions import ConversationStoreError, UnreadableState
from conversations.models import ConversationMismatch, ConversationState
from conversations.routing.standing import Decision, plain_standing
from conversations.routing.transactions import attempt, lost
from conversations.routing.truth import Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore
from flags import metrics, reporter
from flags.connections import close_if_lost, managed
from flags.phases import Phase, Plan, StoreName
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("conversations")

OPERATION = "shadow"
# How many places of a mismatch are recorded.
PLACES = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """A conversation compared in both stores: the places that differ, and digests of the whole."""

    revision: int
    empty: bool
    places: tuple[str, ...] = ()
    tables_hash: str = ""
    legacy_hash: str = ""


def shadow(conversation_id: str, decision: Decision) -> None:
    """Compare a conversation that was just loaded with the other store, once in a while.

    Raises: Error only when the connection is lost inside the caller's transaction.
    """
    if not metrics.enabled():
        return
    legacy, plan = decision.legacy, decision.plan
    both = plan.writes_legacy and plan.writes_normalized
    if legacy is None or not both or random.random() >= conf.get("SHADOW_SHARE"):
        return
    other = next(store for store in StoreName if store != plan.reads)
    started = perf_counter()
    connection = connections[conf.alias()]
    inside = managed(connection)
    try:
        with attempt():
            found = compare(conversation_id, legacy)
    except (Error, ConversationStoreError) as error:
        if inside and isinstance(error, Error) and lost(conf.alias()):
            raise
        close_if_lost(connection, error)
        logger.warning("conversation %s: not compared (%s)", shown(conversation_id), named(error))
        metrics.observe(OPERATION, other, perf_counter() - started, error=True)
        return
    # Two empty conversations are no evidence.
    if found is not None and not found.empty:
        metrics.observe(OPERATION, other, perf_counter() - started, mismatch=bool(found.places))
        if found.places:
            _report(conversation_id, plan, found)


def compare(conversation_id: str, legacy: LegacyStore) -> Compared | None:
    """Compare a conversation in both stores, where they should be equal.

    Takes no lock. Returns: None where they may differ, or a write came between.
    """
    before = _in_both(conversation_id, legacy)
    if before is None:
        return None
    ours = NormalizedStore().document(before)
    theirs, problem = None, "missing in legacy"
    try:
        stored = legacy.load(conversation_id)
        theirs = None if stored is None else stored.document
    except UnreadableState:
        problem = "unreadable in legacy"
    after = _in_both(conversation_id, legacy)
    if after is None or after.revision != before.revision:
        return None
    places = [problem]
    if theirs is not None:
        places = list(differences(ours, theirs, exact=legacy.exact))
    return Compared(
        revision=before.revision,
        empty=not (ours.messages or (theirs and theirs.messages)),
        places=tuple(places[:PLACES]),
        tables_hash=_hash(ours),
        legacy_hash="" if theirs is None else _hash(theirs),
    )


def _in_both(conversation_id: str, legacy: LegacyStore) -> ConversationState | None:
    """Return the row of a conversation that both stores hold as of one number, or None."""
    found = plain_standing(conversation_id, legacy)
    return found.row if found.truth == Truth.BOTH else None


def _hash(document: Document) -> str:
    return (document.messages_digest + document.state_digest).hex()


def _report(conversation_id: str, plan: Plan, found: Compared) -> None:
    """Record a mismatch, outside the caller's transaction: ids, places and digests."""
    logger.error(
        "conversation %s: the stores differ at revision %s in %s places",
        shown(conversation_id),
        found.revision,
        len(found.places),
    )
    mismatch = ConversationMismatch(
        conversation_id=conversation_id,
        seen_at=timezone.now(),
        phase=int(Phase(plan.phase)),
        revision=found.revision,
        places=json.dumps(found.places),
        tables_hash=found.tables_hash,
        legacy_hash=found.legacy_hash,
    )
    reporter.defer(partial(mismatch.save, using=conf.alias()))


def prune() -> int:
    """Remove mismatches that are as old as measures may be. Returns: how many."""
    rows = ConversationMismatch.rows.using(conf.alias())
    return int(rows.filter(seen_at__lt=timezone.now() - metrics.KEPT).delete()[0])
