"""Taking legacy back: its blobs from an archive, and the record that it is in use again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from django.db import transaction

from conversations import conf, redactions
from conversations.batches import failure
from conversations.exceptions import ArchiveRefused, InvalidState
from conversations.locking import deleted, lock
from conversations.models import ConversationState
from conversations.owners import user_exists
from conversations.retirement.archives import lines_read
from conversations.stores.blobs import Row, put_back, restored_keys
from conversations.stores.chunkformat import CONVERSATION_ID, parsed
from conversations.stores.chunks import ChunkStore
from conversations.stores.registry import configured_store
from conversations.transactions import translated
from flags import retirement
from flags.records import Record


class Result(StrEnum):
    """What became of one blob of an archive."""

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

    Legacy holds then what was put back, or nothing: no row says that it holds anything, so the
    tables stay the truth until `conversations sync --to legacy`.

    Raises: TransitionRefused when legacy is not retired; FenceBusy.
    """
    return retirement.restore(reason=reason, actor=actor)


def restore_archive(path: Path) -> Iterator[Restored]:
    """Put the blobs of an archive back; yield what became of each. May be repeated.

    Nothing of a deleted conversation comes back, and no text that was redacted since. A blob
    whose key is another chunk's by now gets a new one.

    Raises: ArchiveRefused when the file is no archive, or the store none that has blobs; OSError.
    """
    if not isinstance(configured_store(), ChunkStore):
        raise ArchiveRefused("CONVERSATIONS['LEGACY'] is not memory_chunks: it has no blobs.")
    for chunk, said in lines_read(path):
        names = [row.get("value", "") for row in said if row["key"] == CONVERSATION_ID]
        conversation_id = names[0] if names else ""
        try:
            with translated(conversation_id), transaction.atomic(using=conf.alias()):
                result, reason = _restored(chunk, said, conversation_id), ""
        except Exception as error:  # noqa: BLE001 - one that fails keeps no other from its turn
            result, reason = Result.FAILED, failure(conversation_id, error)
        yield Restored(chunk["id"], conversation_id, result, reason)


def _restored(chunk: Row, said: list[Row], conversation_id: str) -> Result:
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
    """Return a blob without what was redacted since; its embedding goes with the text.

    Raises: InvalidState where a blob that may hold such a text cannot be read.
    """
    known = redactions.of(row)
    document = redactions.applied_to(parsed(chunk.get("content")), known) if known else None
    if document is None:
        return chunk
    kept = {name: value for name, value in chunk.items() if name != "embedding"}
    return kept | {"content": document.to_json()}
