"""Take legacy back: put its blobs back from an archive, and record that it is in use again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from conversations.content import redaction
from conversations.exceptions import ArchiveRefused, InvalidState
from conversations.models import ConversationState
from conversations.rollout.retirement.archives import lines_read
from conversations.routing.ids import failure
from conversations.routing.locks import deleted, lock
from conversations.routing.owners import user_exists
from conversations.routing.standing import in_transaction
from conversations.stores.chunks.archive_rows import Row, put_back, restored_keys
from conversations.stores.chunks.format import CONVERSATION_ID, parsed
from conversations.stores.normalized import redactions_of
from conversations.stores.registry import configured_store
from flags import retirement
from flags.records import Record


class Result(StrEnum):
    """The result of one blob of an archive."""

    RESTORED = "restored"
    THERE = "there already"
    DELETED = "not restored: its conversation was deleted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Restored:
    """One blob of an archive, by its key there; `reason` says why it failed."""

    key: str
    conversation_id: str
    result: Result
    reason: str = ""


def restore(*, reason: str = "", actor: str = "") -> Record:
    """Record that legacy is in use again: the rollout may go back from then on.

    Legacy then holds the blobs that were put back, or none. No row says that it holds anything, so
    the tables hold the truth until `conversations sync --to legacy`.

    Raises: TransitionRefused if legacy is not retired; FenceBusy.
    """
    return retirement.restore(reason=reason, actor=actor)


def restore_archive(path: Path) -> Iterator[Restored]:
    """Put the blobs of an archive back; yield the result of each. May be repeated.

    Deleted conversations and redacted texts do not return. A blob whose key now belongs to another
    chunk gets a new key.

    Raises: ArchiveRefused if the file is no archive, or the store has no blobs; OSError.
    """
    legacy = configured_store()
    if legacy is None or not legacy.removable:
        raise ArchiveRefused("CONVERSATIONS['LEGACY'] is not memory_chunks: it has no blobs.")
    for chunk, said in lines_read(path):
        names = [row.get("value", "") for row in said if row["key"] == CONVERSATION_ID]
        conversation_id = names[0] if names else ""
        try:
            with in_transaction(conversation_id):
                result, reason = _restore_one(chunk, said, conversation_id), ""
        except Exception as error:  # noqa: BLE001 - a failure must not stop the others
            result, reason = Result.FAILED, failure(conversation_id, error)
        yield Restored(chunk["id"], conversation_id, result, reason)


def _restore_one(chunk: Row, said: list[Row], conversation_id: str) -> Result:
    row = lock(conversation_id)
    if row is None and deleted(conversation_id):
        return Result.DELETED
    if chunk["id"] in restored_keys(conversation_id):
        return Result.THERE
    owner = chunk.get("user_id")
    if owner is not None and not user_exists(owner):
        raise InvalidState("its user is gone", path="user_id")
    put_back(_redacted(chunk, row), said, known=row is not None)
    return Result.RESTORED


def _redacted(chunk: Row, row: ConversationState | None) -> Row:
    """Return a blob without texts redacted since; its embedding is dropped with them.

    Raises: InvalidState if a blob that may hold such a text is unreadable.
    """
    known = redactions_of(row)
    document = redaction.applied_to(parsed(chunk.get("content")), known) if known else None
    if document is None:
        return chunk
    kept = {name: value for name, value in chunk.items() if name != "embedding"}
    return kept | {"content": document.to_json()}
