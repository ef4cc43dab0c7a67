"""Delete conversations for ever, and change owners: operations that need every store at once."""

from __future__ import annotations

from django.utils import timezone

from conversations import conf
from conversations.exceptions import ConversationNotFound, InvalidOwner
from conversations.models import ConversationState, ConversationTombstone
from conversations.routing.locks import deleted, lock
from conversations.routing.owners import same_owner, user_exists
from conversations.routing.standing import in_transaction, truth_by_token
from conversations.routing.truth import Truth
from conversations.signals import conversation_deleted, send_on_commit
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, owned, owner_of
from conversations.stores.registry import configured_store
from conversations.writing.fork import touch
from conversations.writing.ingest import merge
from conversations.writing.write import write
from flags.texts import shown

DELETED = "deleted"
OWNER_DELETED = "owner deleted"


def delete(conversation_id: str, *, owner: str | None, reason: str = DELETED) -> bool:
    """Remove a conversation from both stores, and leave a tombstone.

    Returns: False when there is none that `owner` (None: any caller) may delete.
    """
    with in_transaction(conversation_id):
        legacy = configured_store()
        held, actual = _lock_and_ask_owner(conversation_id, legacy, asked=owner is not None)
        if not held or (owner is not None and not same_owner(owner, actual)):
            return False
        bury(conversation_id, reason=reason)
        NormalizedStore().delete(conversation_id)
        if legacy is not None:
            legacy.delete(conversation_id)
        send_on_commit(conversation_deleted, conversation_id, reason=reason)
        return True


def _lock_and_ask_owner(
    conversation_id: str, legacy: LegacyStore | None, *, asked: bool
) -> tuple[bool, str | None]:
    """Lock a conversation. Returns: whether a store holds it, and its owner.

    For a conversation without an owner, `asked` first ingests old code's writes: they may name the
    owner.
    """
    row = lock(conversation_id)
    if row is None:
        if legacy is None or deleted(conversation_id):
            return False, None
        return legacy.owner(conversation_id)
    if asked and owner_of(row) is None and legacy is not None:
        if truth_by_token(row, legacy) == Truth.MERGE:
            merge(NormalizedStore(), legacy, row, now=timezone.now())
    return True, owner_of(row)


def bury(conversation_id: str, *, reason: str) -> None:
    """Write the tombstone of a conversation, unless it has one."""
    ConversationTombstone.rows.using(conf.alias()).get_or_create(
        conversation_id=conversation_id,
        defaults={"deleted_at": timezone.now(), "reason": reason},
    )


def delete_all_of(owner: str) -> None:
    """Remove everything of an owner from both stores; only tombstones stay.

    A blob that names the owner may stand in another user's conversation, which stays.
    """
    rows = ConversationState.rows.using(conf.alias())
    # By primary key, the order in which a redaction locks forks, so that the two cannot deadlock.
    ids = list(owned(rows, owner).order_by("pk").values_list("conversation_id", flat=True))
    legacy = configured_store()
    if legacy is not None:
        ids += legacy.conversations_of(owner)
    for conversation_id in dict.fromkeys(ids):
        delete(conversation_id, owner=owner, reason=OWNER_DELETED)


def claim(conversation_id: str, owner: str) -> None:
    """Make `owner` the owner of a conversation that has none, in both stores."""
    with in_transaction(conversation_id) as decision:
        if not user_exists(owner):
            raise InvalidOwner(f"there is no user {shown(owner)}.")
        legacy = configured_store()
        if legacy is not None and not legacy.names_owners:
            # Only a row of the tables can hold the owner.
            write(conversation_id, touch(), owner=None, decision=decision)
        held, actual = _lock_and_ask_owner(conversation_id, legacy, asked=True)
        if not held or (actual is not None and not same_owner(actual, owner)):
            raise ConversationNotFound
        if actual is not None:
            return
        rows = ConversationState.rows.using(conf.alias())
        rows.filter(conversation_id=conversation_id).update(user_id=owner)
        if legacy is not None:
            legacy.claim(conversation_id, owner)
