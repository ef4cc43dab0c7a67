"""What the legacy store holds, page by page: conversations that have no row yet are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from conversations import conf
from conversations.admin.residence import residence_of
from conversations.models import ConversationState, ConversationTombstone
from conversations.stores.base import Summary
from conversations.stores.registry import legacy_store
from conversations.transactions import translated

PER_PAGE = 50
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LegacyLine:
    """One conversation in legacy. `pk` is that of its row in the tables, None without one."""

    conversation_id: str
    updated_at: datetime | None
    residence: str
    pk: int | None


@dataclass(frozen=True, slots=True)
class LegacyPage:
    """Conversations by latest activity; `next` is the cursor of the page behind."""

    lines: tuple[LegacyLine, ...]
    next: str | None


def has_legacy() -> bool:
    """Whether there is a store to migrate from."""
    return legacy_store() is not None


def legacy_page(*, cursor: str = "") -> LegacyPage:
    """Return a page of what legacy holds, latest activity first; a bad cursor begins anew.

    Raises: StorageUnavailable.
    """
    store = legacy_store()
    if store is None:
        return LegacyPage((), None)
    with translated("in legacy"):
        found = store.list(before=_position(cursor), limit=PER_PAGE + 1)
        page = found[:PER_PAGE]
        lines = tuple(_lines(page))
    return LegacyPage(lines, _cursor(page[-1]) if len(found) > PER_PAGE else None)


def _lines(page: Sequence[Summary]) -> Iterator[LegacyLine]:
    ids = [summary.conversation_id for summary in page]
    rows = _rows(ids)
    gone = ConversationTombstone.rows.using(conf.alias()).filter(conversation_id__in=ids)
    deleted = set(gone.values_list("conversation_id", flat=True))
    for summary in page:
        pk, residence = rows.get(summary.conversation_id, (None, "legacy"))
        if pk is None and summary.conversation_id in deleted:
            residence = "deleted"
        yield LegacyLine(summary.conversation_id, summary.updated_at, residence, pk)


def _rows(ids: list[str]) -> Mapping[str, tuple[int | None, str]]:
    rows = ConversationState.rows.using(conf.alias()).filter(conversation_id__in=ids)
    columns = rows.values_list("conversation_id", "pk", "revision", "legacy_revision")
    return {
        conversation_id: (pk, str(residence_of(revision, legacy_revision)))
        for conversation_id, pk, revision, legacy_revision in columns
    }


def _cursor(summary: Summary) -> str:
    moment = summary.updated_at or _NEVER
    return f"{moment.astimezone(UTC).isoformat()}|{summary.conversation_id}"


def _position(cursor: str) -> tuple[datetime, str] | None:
    moment, separator, conversation_id = cursor.partition("|")
    try:
        parsed = datetime.fromisoformat(moment)
        if not separator or parsed.tzinfo is None or "\x00" in conversation_id:
            return None
        return parsed.astimezone(UTC), conversation_id
    except (ValueError, OverflowError):
        return None
