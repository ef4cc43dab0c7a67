"""The conversations in the legacy store, page by page: those without a row are there too.

Each line is checked for whether its reader may see it; see `flags.admin.rights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conversations import conf
from conversations.admin.residence import residence_of
from conversations.models import ConversationState, ConversationTombstone
from conversations.routing.standing import decide
from conversations.routing.transactions import attempt, translated
from conversations.stores.sql.expressions import NEVER
from conversations.stores.types import Summary
from flags.admin.rights import ConversationRights

PER_PAGE = 50
# How many conversations are searched for a page, if its reader may see only some.
MOST_ASKED = 2_000
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class LegacyLine:
    """One conversation in legacy. `pk` is that of its row in the tables, None without one."""

    conversation_id: str
    updated_at: datetime | None
    residence: str
    pk: int | None


@dataclass(frozen=True, slots=True)
class LegacyPage:
    """Conversations by latest activity; `next` is the cursor of the next page."""

    lines: tuple[LegacyLine, ...]
    next: str | None


def has_legacy() -> bool:
    """Whether there is a store to migrate from."""
    return decide().legacy is not None


def legacy_page(rights: ConversationRights, *, cursor: str = "") -> LegacyPage:
    """Return a page of legacy's conversations, latest activity first; a bad cursor begins anew.

    It looks at no more than `MOST_ASKED` lines, and names none that the reader may not see. If the
    reader may see none of so many, the list ends.

    Raises: StorageUnavailable.
    """
    decision = decide()
    store = decision.legacy
    if store is None:
        return LegacyPage((), None)
    seen: list[Summary] = []
    with translated("in legacy", emergency=decision.emergency):
        behind, asked, size = _position(cursor), 0, PER_PAGE + 1
        while len(seen) <= PER_PAGE and asked < MOST_ASKED:
            found = store.list(before=behind, limit=size)
            seen += _seen(rights, found)
            if len(found) < size:
                break
            behind = (found[-1].updated_at or NEVER, found[-1].conversation_id)
            asked, size = asked + size, AT_ONCE
        page = seen[:PER_PAGE]
        lines = tuple(_lines(page))
    return LegacyPage(lines, _cursor(page[-1]) if len(seen) > PER_PAGE else None)


def stand_in(rights: ConversationRights, conversation_id: str) -> Any:
    """Return an instance with id and owner of a conversation that legacy holds, else None.

    Raises: StorageUnavailable.
    """
    decision = decide(conversation_id)
    store = decision.legacy
    if store is None:
        return None
    with translated(conversation_id, emergency=decision.emergency), attempt():
        held, owner = store.owner(conversation_id)
        if not held:
            return None
        (found,) = rights.stand_ins([(conversation_id, owner)]).values()
    return found


def _seen(rights: ConversationRights, page: Sequence[Summary]) -> list[Summary]:
    named = rights.viewable_subjects((line.conversation_id, line.owner) for line in page)
    return [line for line in page if (line.conversation_id, line.owner) in named]


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
    moment = summary.updated_at or NEVER
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
