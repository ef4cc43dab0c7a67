"""Conversations as lines of our own format; an unreadable one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from conversations.exceptions import ConversationNotFound, ConversationStoreError
from conversations.formats.snapshots import snapshot
from conversations.routing.ids import conversation_ids, failure
from conversations.routing.transactions import attempt
from flags.texts import shown


@dataclass(frozen=True, slots=True)
class NotExported:
    """A conversation without a line: the reason, without content, and the reason's class.

    Classes: "unreadable", "unanswered", "other_owner", … or "error".
    """

    conversation_id: str
    reason: str
    reason_class: str


def export_lines(
    ids: Iterable[str] | None = None, *, failed: Callable[[NotExported], None] | None = None
) -> Iterator[str]:
    """Yield a line, without its end, for every conversation, or for those named.

    Each line shows one revision, read from the store that holds the truth. Writes of old code are
    merged first, as at a load. Lines are ordered by the age of the rows, so that the origin of a
    fork comes before it. Then come conversations that only legacy holds. Named ones keep the order
    of the names. Only one conversation is in memory at a time.

    `failed` is called for each conversation that cannot be exported, and the rest is yielded.
    Without it, the first one raises: an export with gaps would be taken for a whole one.

    Raises: ConversationNotFound for a named id that is missing or deleted. Without `failed`,
    StorageUnavailable, also for unreadable conversations; with it, only errors that end the walk
    itself.
    """
    named = ids is not None
    for conversation_id in conversation_ids(ids):
        try:
            with attempt():
                record = snapshot(conversation_id)
            line = None if record is None else record.to_line()
        except Exception as error:
            if failed is None:
                raise
            reason = failure(conversation_id, error)
            kind = error.reason_class if isinstance(error, ConversationStoreError) else "error"
            failed(NotExported(conversation_id, reason, kind))
            continue
        if line is not None:
            yield line
        elif named:
            raise ConversationNotFound(f"there is no conversation {shown(conversation_id)}.")
