"""The protocol of a legacy store.

The protocol documents the contract; implementations document only differences. A store opens no
transaction, takes no lock and knows neither the phases nor the other store. `writing` does, and
calls a store inside its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from django.core.checks import CheckMessage

from conversations.content.document import Document
from conversations.stores.types import (
    Blobs,
    BlobState,
    ForeignBlob,
    Leftovers,
    Pruned,
    Stored,
    Summary,
)


@runtime_checkable
class LegacyStore(Protocol):
    """A store that old code writes as well, without regard to us.

    A conversation is named by its public id.
    """

    name: str

    @classmethod
    def check(cls, legacy: Mapping[Any, Any]) -> Iterable[CheckMessage]:
        """Return the faults of a mapping of LEGACY, for `manage.py check`; never raise."""

    def load(self, conversation_id: str) -> Stored | None:
        """Return the stored state, or None if the store holds nothing of this conversation.

        Raises: UnreadableState if the stored value is no state.
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
        """Replace the stored state by `document`, as of `revision` (0: no number is kept).

        Returns: the token; `known` is the last one that `writing` has seen.
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

        `owner` None means every owner; `before` continues behind a summary's time and id.
        """

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return a token of the stored state, to compare with an earlier one for equality.

        It changes when other code writes the store. A store that only we write returns "".
        `known` is the token to compare with.
        """

    @property
    def exact(self) -> bool:
        """Whether JSON returns exactly. A jsonb column reorders keys and changes numbers."""

    @property
    def removable(self) -> bool:
        """Whether a retirement archives and removes its rows: those of memory_chunks alone."""

    @property
    def tables(self) -> Sequence[str]:
        """Return the names of the tables that hold the states."""

    def blobs(self) -> Blobs:
        """Count the stored states, in the database."""

    def leftovers(self) -> Leftovers:
        """Count the rows that no load reads, in the database."""

    def overtaken(self) -> Blobs:
        """Count the states that are not the newest of their conversation, in the database."""

    def crowded(self, ids: Sequence[str], *, keep: int) -> Sequence[str]:
        """Return those of these conversations that may have more than `keep` blobs."""

    def prune(
        self,
        conversation_id: str,
        *,
        keep: int,
        needed: int,
        behind: Any = None,
        dry_run: bool = False,
        measured: bool = True,
    ) -> Pruned:
        """Remove a batch of blobs that we wrote and that `keep` or more later ones overtook.

        Three kinds stay: the newest blob, blobs of others, and blobs that `last_ours` may need
        for the revision `needed` or a later one. The cost of a batch does not grow with the
        number of blobs. Without `measured`, the bytes are not counted. The caller holds the
        conversation's lock, except for a `dry_run`, which removes nothing.
        """

    def token_sql(self) -> str:
        """Return the SQL of a scalar expression over conversation_states, for `token_of`.

        The statement that reads the conversation's row computes the token with it.
        """

    def token_of(self, value: Any, known: str) -> str:
        """Return the token that a value of `token_sql` means."""

    def token_unchanged_sql(self) -> str | None:
        """Return the SQL condition over conversation_states that the token is unchanged.

        None if the database alone cannot decide; "" is no condition.
        """

    def last_ours_sql(self) -> tuple[str, ...] | None:
        """Return SQL of scalar expressions over conversation_states, for one statement.

        The first is for `token_of`; the last is for `last_ours_from`, and is the value that
        `last_ours` reads. They may be the same. None if only the model can read a state.
        """

    def last_ours_from(self, text: str | None, *, known: str) -> Stored | None:
        """Return the result of `last_ours` without its owner; None if the token is not `known`.

        Raises: UnreadableState.
        """

    def foreign_ids(self, conversation_id: str, known: str) -> str:
        """Return a note of the writes of others since `known`, for `list_foreign` and
        `mark_ingested`.

        Old code takes no lock. Only writes in this note may be settled: a write that appears
        between two statements waits for the next time.
        """

    def list_foreign(
        self, conversation_id: str, known: str, foreign_ids: str
    ) -> Sequence[ForeignBlob]:
        """Return the writes that the note `foreign_ids` names, in the order of writing."""

    def last_ours(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        """Return the state that we know legacy to hold since `revision`, if it still does.

        Unlike `load`, it never returns a later write of others.
        """

    def correct(
        self, conversation_id: str, reference: str, document: Document, foreign_ids: str
    ) -> str:
        """Rewrite one of the blobs of `foreign_ids` in place. Returns: the note after that."""

    def mark_ingested(
        self,
        conversation_id: str,
        *,
        revision: int,
        known: str,
        foreign_ids: str,
        quarantined: Sequence[str] = (),
    ) -> str:
        """Note that all writes of `foreign_ids` were ingested at `revision`. Returns: the token."""

    def sizes(self, ids: Sequence[str]) -> Mapping[str, int]:
        """Return the bytes of JSON that `load` reads, of those ids that the store holds."""

    def read_many(self, ids: Sequence[str]) -> Sequence[BlobState]:
        """Return the results of `foreign_ids` and `load` for conversations that have no row yet.

        Each is as of one moment. The caller holds the conversations' locks.
        """

    def mark_many_ingested(self, looks: Sequence[BlobState], *, revision: int) -> None:
        """Note that all writes in these `BlobState`s were ingested at `revision`."""

    def renumber(self, conversation_id: str, *, old: int, new: int) -> None:
        """Note that the state which legacy held at revision `old` is that of `new`."""

    def owner(self, conversation_id: str) -> tuple[bool, str | None]:
        """Return whether the store holds a conversation, and its owner, without reading it."""

    @property
    def names_owners(self) -> bool:
        """Whether the store can name owners: if not, its conversations have none."""

    def owner_by_id(self, conversation_id: str) -> str | None:
        """Return the owner that an id itself names, None if ids name none."""

    def refusal(self, conversation_id: str, *, owner: str | None) -> str:
        """Return why `save` cannot create this id for this owner; "" if it can."""

    def specimen(self) -> str:
        """Return a conversation id for a drill, in a transaction that is rolled back.

        No conversation has the id. If a save could make no row of it, this makes an empty one. If
        that is impossible too, it is the id of an existing conversation. Raises: InvalidState if
        there is none.
        """

    def takes_any_owner(self) -> bool:
        """Whether an owner without a user can be stored: no foreign key forbids it."""

    def claim(self, conversation_id: str, owner: str) -> None:
        """Make `owner` the owner of the stored conversation."""

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        """Rewrite every stored version for which `change` returns a document.

        Returns: the token; concurrent writes of others still differ from it.
        """

    def conversations_of(self, owner: str) -> Sequence[str]:
        """Return the ids of all stored conversations of an owner."""

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        """Return conversation ids in ascending order, for batches."""

    def last_key(self) -> Any:
        """Return the greatest primary key of the rows with conversations, None without any."""

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        """Return the key of the `count`-th row behind `low` (None: the first), or `upper`.

        Keys are JSON values, in the order of the database; keys behind `upper` are not counted.
        Returns: None if there is no row.
        """

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        """Return the ids of conversations with a row behind `low` up to and including `high`.

        If conversations have many rows, some are left out: those with a row up to `low` from
        before `token_unchanged_sql`. A walk over the keys from the first on has met them.
        """

    def met(self, ids: Sequence[str], low: Any) -> Collection[str]:
        """Return those of the conversations that have a row up to and including a key."""

    def mark(self) -> str:
        """Return a note of all writes until now, for `ids_written_since`."""

    def ids_written_since(self, mark: str) -> Iterable[str]:
        """Return the ids of conversations that any code wrote since `mark`, or more ids."""
