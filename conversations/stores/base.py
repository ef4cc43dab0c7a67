"""The protocol of a store, and what crosses it.

The protocol documents the contract; implementations document only what differs. A store
opens no transaction, takes no lock and knows neither phases nor the other store: `operations`
does, and calls a store inside its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from django.db import connections
from django.db.models import Model, Q, QuerySet

from conversations import conf
from conversations.documents import Document
from conversations.exceptions import ConversationNotFound


@dataclass(frozen=True, slots=True)
class Stored:
    """One conversation as a store holds it.

    `owner` is the primary key of the user as text. `version` identifies what was read:
    equal versions of a conversation mean equal content. `reference` names the row for logs.
    """

    document: Document
    owner: str | None
    version: str
    updated_at: datetime | None
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A blob that somebody else wrote into legacy: readable (`stored`), or not (`problem`)."""

    reference: str
    owner: str | None
    stored: Stored | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What legacy holds of a conversation that the tables do not know, as of one moment.

    `stored` is None where it is `held`, but has to be looked at by itself: what cannot be read,
    or was set aside. `seen` is what `survey` notes, `token` what `settle` gives for it.
    """

    conversation_id: str
    held: bool
    token: str
    stored: Stored | None = None
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of a list of conversations. Legacy does not count its messages (None)."""

    conversation_id: str
    updated_at: datetime | None
    message_count: int | None
    store: str


@dataclass(frozen=True, slots=True)
class Blobs:
    """How many states a legacy store holds, and how many bytes of JSON they are."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a legacy store holds that no load reads.

    `overtaken`: states that are not the newest of their conversation. `unnamed`: states that name
    no conversation. `bare_metadata`: metadata rows that belong to nothing. `of_deleted`: states
    of conversations that were deleted.
    """

    overtaken: int = 0
    overtaken_bytes: int = 0
    unnamed: int = 0
    bare_metadata: int = 0
    of_deleted: int = 0


# The time of a conversation that has none: it is listed behind all that have one.
NEVER = datetime.min.replace(tzinfo=UTC)
# The last time that has a later one.
LAST_MOMENT = datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1)


def listed_behind(before: tuple[datetime, str], *, time: str, name: str) -> Q:
    """Return the condition of standing behind a time and an id, in columns of these names."""
    moment, conversation_id = before
    lower = Q(**{f"{name}__lt": conversation_id})
    untimed = Q(**{f"{time}__isnull": True})
    if moment == NEVER:
        return untimed & lower
    return Q(**{f"{time}__lt": moment}) | Q(**{time: moment}) & lower | untimed


def grown(stored: Stored | None, messages: Sequence[Any]) -> Stored:
    """Return what a store holds, with messages added: for stores that write it whole.

    Raises: ConversationNotFound when the store holds nothing.
    """
    if stored is None:
        raise ConversationNotFound
    document = stored.document
    return replace(stored, document=replace(document, messages=[*document.messages, *messages]))


def has_foreign_key(model: type[Model], column: str) -> bool:
    """Whether the database enforces a foreign key on a column, whatever the model says."""
    connection = connections[conf.alias()]
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    return any(each["foreign_key"] and column in each["columns"] for each in found.values())


def between(rows: QuerySet[Any], low: Any, high: Any, *, name: str) -> QuerySet[Any]:
    """Return the rows whose `name` is behind `low` (None: from the first) and up to `high`."""
    bounded = rows.filter(**{f"{name}__lte": high})
    return bounded if low is None else bounded.filter(**{f"{name}__gt": low})


def key_after(rows: QuerySet[Any], low: Any, upper: Any, *, count: int) -> Any:
    """Return the primary key of the `count`-th row of a range, or of its last one, or None."""
    keys = between(rows, low, upper, name="pk").order_by("pk").values_list("pk", flat=True)
    return keys[count - 1 : count].first() or keys.reverse().first()


def byte_length(expression: str, vendor: str) -> str:
    """Return the SQL of how many bytes a text has (an older SQLite has no octet_length)."""
    if vendor == "sqlite":
        return f"LENGTH(CAST({expression} AS BLOB))"
    return f"OCTET_LENGTH({expression})"


def single_row(sql: str) -> tuple[int, ...]:
    """Return the one row of sums that a statement gives; null counts as 0."""
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(sql)
        return tuple(int(value or 0) for value in cursor.fetchone())


@runtime_checkable
class StateStore(Protocol):
    """What every store can do. A conversation is named by its public id."""

    name: str

    def load(self, conversation_id: str) -> Stored | None:
        """Return what the store holds, or None when it holds nothing of this conversation.

        Raises: UnreadableState when what it holds is no state.
        """

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        """Make `document` what the store holds, as of `revision` (0: no number is kept).

        Returns: the token; `known` is the one that `operations` has seen last.
        """

    def append(
        self,
        conversation_id: str,
        messages: Sequence[Any],
        *,
        revision: int = 0,
        known: str = "",
    ) -> str:
        """Add messages behind the last one of a conversation that the store holds.

        Returns: the token.
        Raises: ConversationNotFound when the store does not hold the conversation.
        """

    def delete(self, conversation_id: str) -> bool:
        """Remove every trace of a conversation. Returns: whether there was one."""

    def list(
        self,
        *,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[Summary]:
        """Return summaries by latest activity, newest first (ties by id, descending).

        `owner` None means every owner's; `before` continues behind a summary's time and id.
        """

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return what the store looks like now, compared for equality with an earlier token.

        It changes when somebody writes without telling `operations`; a store that is never
        written by others answers "". `known` is the token to compare with.
        """


@runtime_checkable
class LegacyStore(StateStore, Protocol):
    """A store that old code, which knows nothing of us, writes as well."""

    @property
    def exact(self) -> bool:
        """Whether JSON comes back exactly. A jsonb column reorders keys and changes numbers."""

    @property
    def tables(self) -> Sequence[str]:
        """Return the names of the tables that hold the states."""

    def blobs(self) -> Blobs:
        """Count what the store holds, in the database."""

    def leftovers(self) -> Leftovers:
        """Count what the store holds and no load reads, in the database."""

    def probe(self) -> str:
        """Return the SQL of a scalar expression over conversation_states, for `judge`.

        It is the token, inside the statement that reads the conversation's row.
        """

    def judge(self, probed: Any, known: str) -> str:
        """Return the token that a probe's value means."""

    def settled(self) -> str | None:
        """Return the SQL of a condition over conversation_states: that `judge` gives the token.

        None where the database alone cannot tell, and "" is no condition.
        """

    def held_columns(self) -> tuple[str, ...] | None:
        """Return SQL of scalar expressions over conversation_states, to read at once.

        The first is for `judge`; the last, for `held_from`, is what `held` reads. They may be
        one and the same. None where only the model knows how to read a state.
        """

    def held_from(self, text: str | None, *, known: str) -> Stored | None:
        """Return what `held` gives where the token still is `known`, or None; not its owner.

        Raises: UnreadableState.
        """

    def survey(self, conversation_id: str, known: str) -> str:
        """Return a note of what others have written since `known`, for `foreign` and `settle`.

        Old code takes no lock. Only what stands in this note may be settled: what appears
        between two statements is left for the next time.
        """

    def foreign(self, conversation_id: str, known: str, seen: str) -> Sequence[Foreign]:
        """Return what others wrote, of what was `seen`, in the order of writing."""

    def held(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        """Return what we know legacy to hold since `revision`, if it still does.

        Unlike `load`, never what somebody else has written meanwhile.
        """

    def correct(self, conversation_id: str, reference: str, document: Document, seen: str) -> str:
        """Rewrite one blob of those `seen` in place. Returns: the note as it is now."""

    def settle(
        self,
        conversation_id: str,
        *,
        revision: int,
        known: str,
        seen: str,
        quarantined: Sequence[str] = (),
    ) -> str:
        """Note that everything `seen` has been taken in at `revision`. Returns: the token."""

    def sizes(self, ids: Sequence[str]) -> Mapping[str, int]:
        """Return how many bytes of JSON there are to `load`, of those that the store holds."""

    def looks(self, ids: Sequence[str]) -> Sequence[Look]:
        """Return what `survey` and `load` would say of each, for conversations without a row.

        Each is as of one moment. Who calls holds the conversations' locks.
        """

    def settle_looks(self, looks: Sequence[Look], *, revision: int) -> None:
        """Note that everything these looks have seen has been taken in at `revision`."""

    def renumber(self, conversation_id: str, *, old: int, new: int) -> None:
        """Note that what legacy held at revision `old` is what it holds at `new`."""

    def owner(self, conversation_id: str) -> tuple[bool, str | None]:
        """Return whether the store holds a conversation, and its owner, without reading it."""

    def takes_any_owner(self) -> bool:
        """Whether an owner who is no user can be stored: whether no foreign key forbids it."""

    def claim(self, conversation_id: str, owner: str) -> None:
        """Make `owner` the owner of what the store holds."""

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        """Rewrite every version the store holds, where `change` gives one.

        Returns: the token, by which what others write meanwhile is still found.
        """

    def conversations_of(self, owner: str) -> Sequence[str]:
        """Return the ids of everything the store holds of an owner."""

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        """Return conversation ids in ascending order, for batches."""

    def last_key(self) -> Any:
        """Return the greatest primary key of the rows that hold conversations, None without any."""

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        """Return the key of the `count`-th row behind `low` (None: the first), or `upper`.

        Keys are JSON values, in the order of the database; nothing behind `upper` is counted.
        Returns: None when there is no row.
        """

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        """Return the ids of conversations with a row behind `low` up to and including `high`.

        Where a conversation has many rows, those are left out that had one up to `low` before
        `settled`: whoever walks over the keys from the first has met them.
        """

    def mark(self) -> str:
        """Return a note of what was written until now, for `written_since`."""

    def written_since(self, mark: str) -> Iterable[str]:
        """Return the ids of conversations written since `mark`, by whomever; more at worst."""
