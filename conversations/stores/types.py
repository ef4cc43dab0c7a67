"""The values that a store returns, and the error of an id that it cannot create."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conversations.content.document import Document
from conversations.exceptions import InvalidState


class IdRefused(InvalidState):
    """The legacy store can create no conversation with this id: see `LegacyStore.refusal`.

    Callers see an InvalidState.
    """


@dataclass(frozen=True, slots=True)
class Stored:
    """One conversation as a store holds it.

    `owner` is the primary key of the user as text. `version` identifies the content that was read:
    equal versions of a conversation mean equal content. `reference` names the row for logs.
    """

    document: Document
    owner: str | None
    version: str
    updated_at: datetime | None
    reference: str = ""


@dataclass(frozen=True, slots=True)
class ForeignBlob:
    """A blob in legacy that we did not write: readable (`stored`), or not (`problem`)."""

    reference: str
    owner: str | None
    stored: Stored | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BlobState:
    """The content of a conversation in legacy that the tables do not know, as of one moment.

    `held` says whether legacy holds the conversation. If so, and `stored` is None, it has to be
    read alone: it is unreadable, or was set aside. `foreign_ids` is the note of the method of that
    name, `token` the result of `mark_ingested`.
    """

    conversation_id: str
    held: bool
    token: str
    stored: Stored | None = None
    foreign_ids: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of a list of conversations. Legacy does not count its messages (None).

    `owner` is the primary key of the user as text, None if the conversation has no owner.
    """

    conversation_id: str
    updated_at: datetime | None
    message_count: int | None
    store: str
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Blobs:
    """How many states a legacy store holds, and their size in bytes of JSON."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The rows of a legacy store that no load reads.

    `overtaken`: states that are not the newest of their conversation. `unnamed`: states without
    the name of a conversation. `bare_metadata`: metadata rows without an object. `of_deleted`:
    states of deleted conversations.
    """

    overtaken: int = 0
    overtaken_bytes: int = 0
    unnamed: int = 0
    bare_metadata: int = 0
    of_deleted: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """One batch of a conversation's removed blobs: their number, and their bytes of JSON.

    The next batch continues at `behind`; None: there is none.
    """

    blobs: int = 0
    bytes: int = 0
    behind: Any = None
