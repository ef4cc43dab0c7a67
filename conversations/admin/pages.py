"""The page of one conversation: transcript, context and records, each read in a few queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.utils.http import urlencode

from conversations import conf
from conversations.admin.rendering import (
    KNOWN_ROLES,
    ShownItem,
    ShownMessage,
    shown_item,
    shown_message,
)
from conversations.admin.residence import residence_of
from conversations.content.codec import ITEM_COLUMNS, decode_item
from conversations.content.document import DEFAULTS, Document
from conversations.content.field_codec import decode_fields
from conversations.models import ConversationState
from conversations.state import AgentState
from conversations.storage import ANY_OWNER, MessagePage, list_messages, load_state
from conversations.stores.normalized import owner_of
from flags.admin.text import Shown, shown_json, shown_value
from memory.models import MemoryContextItem, MemoryMetadata
from memory.selection import quality_of

MESSAGES_PER_PAGE = 100
ITEMS_SHOWN = 100
RECORDS_SHOWN = 50
TABS = ("transcript", "context", "records")
LARGEST_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of the address. Meaningless ones are ignored."""

    tab: str = "transcript"
    before: int | None = None
    after: int | None = None
    superseded: bool = False
    role: str = ""
    # The id of a conversation without a row, whose page's address names it.
    page_id: str = ""

    @classmethod
    def of(cls, request: HttpRequest, *, page_id: str = "") -> Asked:
        """Return the parameters of a request. Never raises."""
        said = request.GET
        before, after = _sequence(said.get("before")), _sequence(said.get("after"))
        tab, role = said.get("tab", ""), said.get("role", "")
        return cls(
            tab=tab if tab in TABS else TABS[0],
            before=before,
            after=None if before is not None else after,
            superseded=said.get("superseded") == "1",
            role=role if role in KNOWN_ROLES else "",
            page_id=page_id,
        )

    def query(self, **changed: Any) -> str:
        """Return the query string of a link that keeps role and versions; `changed` is added."""
        kept = {
            "id": self.page_id or None,
            "superseded": "1" if self.superseded else None,
            "role": self.role or None,
        }
        said = {name: value for name, value in (kept | changed).items() if value is not None}
        return f"?{urlencode(said)}"

    @property
    def tabs(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the links to the parts of the page: address, name, whether it is shown."""
        fresh = Asked(page_id=self.page_id)
        return tuple(
            (fresh.query(tab=None if tab == TABS[0] else tab), tab.capitalize(), tab == self.tab)
            for tab in TABS
        )


def _sequence(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 19:
        return None
    return min(int(text), LARGEST_SEQUENCE)


@dataclass(frozen=True, slots=True)
class Transcript:
    """One page of messages, and the links to other pages."""

    messages: tuple[ShownMessage, ...]
    links: Mapping[str, str]
    roles: tuple[tuple[str, str, bool], ...]
    superseded_link: str


def transcript_of(conversation_id: str, asked: Asked) -> Transcript:
    """Return a page of 100 messages.

    Raises: ConversationNotFound, InvalidState, StorageUnavailable.
    """
    page = list_messages(
        conversation_id,
        user_id=ANY_OWNER,
        before=asked.before,
        after=asked.after,
        limit=MESSAGES_PER_PAGE,
        include_superseded=asked.superseded,
        roles=[asked.role] if asked.role else None,
    )
    roles = [("", "all roles"), *((role, role) for role in KNOWN_ROLES)]
    return Transcript(
        tuple(map(shown_message, page)),
        _links(page, asked),
        tuple((asked.query(role=role or None), name, role == asked.role) for role, name in roles),
        asked.query(superseded=None if asked.superseded else "1"),
    )


def _links(page: MessagePage, asked: Asked) -> dict[str, str]:
    """Return the links to other pages.

    With superseded versions, a page may end between two versions of one message. Then the next
    page begins with that message again, unless it fills the whole page.
    """
    if page.first is None or page.last is None:
        return {"first": asked.query(after=0)} if asked.before or asked.after else {}
    again = 1 if asked.superseded and page.first != page.last else 0
    links = {}
    if page.has_earlier:
        links["first"] = asked.query(after=0)
        links["earlier"] = asked.query(before=page.first + again)
    if page.has_later:
        links["later"] = asked.query(after=page.last - again)
        links["latest"] = asked.query()
    return links


@dataclass(frozen=True, slots=True)
class Context:
    """The fields of a conversation, and its first context items."""

    fields: tuple[tuple[str, Shown], ...]
    items: tuple[ShownItem, ...]
    hidden_items: int


def context_of(conversation_id: str, row: ConversationState | None) -> Context:
    """Return fields and the first 100 items, from the store that holds the latest revision.

    Raises: StorageUnavailable.
    """
    if row is None or row.legacy_revision > row.revision:
        state = load_state(
            conversation_id,
            user_id=ANY_OWNER,
            max_messages=0,
            max_context_items=ITEMS_SHOWN,
            state_class=AgentState,
        )
        document = Document.from_dict(state.to_dict(with_baseline=False))
        fields = document.fields
        found = [shown_item(value, score=quality_of(value)) for value in document.items]
        hidden = 0 if state.load_info is None else state.load_info.hidden_items
    else:
        fields = decode_fields(vars(row))
        rows = MemoryContextItem.objects.using(conf.alias()).filter(
            conversation_id=row.pk, superseded_in__isnull=True
        )
        found = [
            shown_item(decode_item(columns), score=columns["relevance_score"])
            for columns in rows.order_by("position").values(*ITEM_COLUMNS)[:ITEMS_SHOWN]
        ]
        hidden = max(row.context_item_count - len(found), 0)
    named = ((name, shown_value(value)) for name, value in fields.items() if _says(name, value))
    return Context(tuple(named), tuple(found), hidden)


def _says(name: str, value: Any) -> bool:
    return not (name in DEFAULTS and value == DEFAULTS[name])


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a conversation beside its content."""

    metadata: tuple[tuple[str, Shown], ...]
    conflicts: tuple[tuple[Any, Shown], ...]


def records_of(row: ConversationState | None, *, metadata: bool, conflicts: bool) -> Records:
    """Return the metadata and the latest conflicts that the reader may see."""
    noted: list[tuple[str, Shown]] = []
    found: list[tuple[Any, Shown]] = []
    if row is not None and metadata:
        rows = MemoryMetadata.objects.using(conf.alias()).filter(conversation_id=row.pk)
        pairs = rows.order_by("key").values_list("key", "value")[:RECORDS_SHOWN]
        noted = [(key, shown_value(value, limit=2_000)) for key, value in pairs]
    if row is not None and conflicts:
        latest = row.conflicts.order_by("-revision", "-pk")[:RECORDS_SHOWN]
        found = [(conflict, _detail(conflict.detail)) for conflict in latest]
    return Records(tuple(noted), tuple(found))


def _detail(text: str) -> Shown:
    return shown_json(text, limit=4_000)


def facts_of(row: ConversationState | None) -> dict[str, Any]:
    """Return the facts of the row, for the head of the page."""
    if row is None:
        return {"residence": "legacy", "explanation": "Only legacy holds this conversation."}
    residence = residence_of(row.revision, row.legacy_revision)
    return {
        "residence": residence,
        "explanation": residence.explanation,
        "row": row,
        "owner": owner_of(row),
    }
