"""Lists of conversations over both stores: a row of the tables hides its legacy blobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from itertools import islice

from conversations import conf
from conversations.models import ConversationState, ConversationTombstone
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore
from conversations.stores.sql.expressions import LAST_MOMENT, NEVER
from conversations.stores.types import Summary
from flags.phases import StoreName

# Most conversations in legacy may have a row already. Small pages would find few others each.
_FEWEST = 50


@dataclass(frozen=True, slots=True)
class Position:
    """The place where a list continues: behind a summary's time, store and id."""

    moment: datetime
    store: StoreName
    conversation_id: str

    def within(self, store: StoreName) -> tuple[datetime, str] | None:
        """Return the place where the list of one store continues; None: at its beginning.

        At equal times, conversations of the tables come before those of legacy. Within a store the
        database decides, since Python does not know its collation.
        """
        if store == self.store:
            return self.moment, self.conversation_id
        if store == StoreName.NORMALIZED:
            return self.moment, ""
        if self.moment >= LAST_MOMENT:
            return None
        return self.moment + timedelta(microseconds=1), ""


def summaries(
    owner: str | None,
    legacy: LegacyStore | None,
    *,
    before: Position | None = None,
    limit: int,
) -> list[Summary]:
    """Return summaries by latest activity, newest first, of an owner (None: of all owners)."""
    behind = before.within(StoreName.NORMALIZED) if before else None
    in_tables = NormalizedStore().list(owner=owner, before=behind, limit=limit)
    if legacy is None:
        return list(in_tables)
    behind = before.within(StoreName.LEGACY) if before else None
    # A full page of the tables ends this page: older conversations of legacy come later.
    until = in_tables[-1].updated_at if len(in_tables) == limit else None
    in_legacy = _only_in_legacy(legacy, owner, behind, limit, until=until)
    by_time = merge(in_tables, in_legacy, key=lambda s: s.updated_at or NEVER, reverse=True)
    return list(islice(by_time, limit))


def _only_in_legacy(
    legacy: LegacyStore,
    owner: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
    *,
    until: datetime | None,
) -> list[Summary]:
    """Return summaries of conversations without a row or a tombstone in the tables.

    At least the first `limit` of those that were active later than `until` (None: of all).
    """
    found: list[Summary] = []
    size = max(limit, _FEWEST)
    while len(found) < limit:
        page = legacy.list(owner=owner, before=before, limit=size)
        ids = [summary.conversation_id for summary in page]
        known = _known(ids)
        found += [summary for summary in page if summary.conversation_id not in known]
        if len(page) < size:
            break
        last = page[-1]
        before = (last.updated_at or NEVER, last.conversation_id)
        if until is not None and before[0] <= until:
            break
    return found


def _known(ids: list[str]) -> set[str]:
    alias = conf.alias()
    rows = ConversationState.rows.using(alias).filter(conversation_id__in=ids)
    tombstones = ConversationTombstone.rows.using(alias).filter(conversation_id__in=ids)
    return set(rows.values_list("conversation_id", flat=True)) | set(
        tombstones.values_list("conversation_id", flat=True)
    )
