"""The health of the conversations, for `flags.health`. Counts only, no ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from django.db.models import Exists

from conversations import conf
from conversations.models import (
    LEGACY_BEHIND,
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationState,
)
from conversations.stores.base import LegacyStore
from conversations.stores.registry import configured_store
from flags import health
from flags.conf import SNAPSHOT_SECONDS
from flags.health import Level, Reason, Window
from flags.phases import Phase, StoreName
from flags.switches import last_known_retirement
from memory.models import MemoryContextItem

# A count stops here: a higher one says nothing new.
MOST = 1_000
# No conversation has this id: the look-up needs the tables and finds nothing.
NOBODY = ""

Kind = ConversationConflict.Kind


class ConversationsProbe:
    """Whether each store answers, and the problems between them."""

    def stores(self) -> Mapping[str, Callable[[], object]]:
        """Return the reads that show that a store works."""
        reads: dict[str, Callable[[], object]] = {StoreName.NORMALIZED: _ask_tables}
        legacy = _legacy()
        if legacy is not None:
            reads[StoreName.LEGACY] = partial(legacy.owner, NOBODY)
        return reads

    def findings(self, window: Window) -> Mapping[str, Callable[[], Iterable[Reason]]]:
        """Return the searches for a phase; without legacy there is nothing to compare."""
        if _legacy() is None:
            return {}
        looks: dict[str, Callable[[], Iterable[Reason]]] = {
            "conflicts": partial(_conflicts, window),
            "mismatches": partial(_mismatches, window),
        }
        if Phase.DUAL_WRITE <= window.phase <= Phase.NEW_PRIMARY and not window.emergency:
            looks["conversations behind"] = partial(_behind, window)
        return looks


def register() -> None:
    """Register the probe; called once from `ConversationsConfig.ready`."""
    health.register("conversations", ConversationsProbe())


def _legacy() -> LegacyStore | None:
    """Return the store to migrate from, None if there is none or it is retired. Reads nothing."""
    return None if last_known_retirement() else configured_store()


def _ask_tables() -> None:
    """Read no row of every table that a load needs, and every column of the first.

    Raises: django.db.Error.
    """
    states = ConversationState.rows.using(conf.alias()).filter(pk=0)
    others = [
        Exists(model._base_manager.using(conf.alias()).filter(conversation_id=0))
        for model in (ConversationMessage, MemoryContextItem)
    ]
    list(states.annotate(m=others[0], i=others[1]))


def _conflicts(window: Window) -> Iterator[Reason]:
    """Yield the writes that merges could not keep in place, and the blobs that were set aside.

    While only legacy is written, old code may cause them. From dual_write on, both stores should
    agree. Two callers who edit one message are no problem of the stores, and are not counted.
    """
    rows = ConversationConflict.rows.using(conf.alias())
    # The latest ones by primary key: so their times need no index.
    latest = rows.order_by("-pk").values_list("kind", "created_at")[:MOST]
    counts = Counter(kind for kind, at in latest if at >= window.since)
    level = Level.WARNING if window.phase == Phase.LEGACY else Level.CRITICAL
    if counts[Kind.MERGED]:
        number = counts[Kind.MERGED]
        message = f"{number} writes of old code did not fit the tables: see Conflicts."
        yield Reason("conflicts", level, message, float(number))
    if counts[Kind.QUARANTINED]:
        number = counts[Kind.QUARANTINED]
        message = f"{number} blobs in legacy were set aside: see Conflicts."
        yield Reason("quarantined", level, message, float(number))


def _mismatches(window: Window) -> Iterator[Reason]:
    """Yield the number of loads that differed from the other store."""
    found = ConversationMismatch.rows.using(conf.alias()).filter(seen_at__gte=window.since)
    number = _counted(found)
    if number:
        level = Level.CRITICAL if window.phase >= Phase.NEW_READS else Level.WARNING
        message = f"{number} loads differed from the other store: see Mismatches."
        yield Reason("mismatches", level, message, float(number))


def _behind(window: Window) -> Iterator[Reason]:
    """Yield the number of conversations in which legacy fell behind since both stores are written.

    Some are expected to be behind: they were written before the phase was entered, or by a process
    that did not know the phase yet.
    """
    since = window.since
    if window.entered is not None:
        since = max(since, window.entered + timedelta(seconds=2 * SNAPSHOT_SECONDS))
    rows = ConversationState.rows.using(conf.alias()).filter(LEGACY_BEHIND, updated_at__gte=since)
    number = _counted(rows)
    if number:
        message = (
            f"legacy fell behind in {number} conversations:"
            " run `manage.py conversations sync --to legacy`."
        )
        yield Reason("behind", Level.CRITICAL, message, float(number))


def _counted(rows: Any) -> int:
    """Return how many rows there are, up to `MOST`."""
    return int(rows.order_by().values("pk")[:MOST].count())
