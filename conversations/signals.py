"""What `conversations` does when a user or a conversation is deleted through Django.

Deleting a user leaves nothing of theirs in either store but tombstones, and a conversation
that is deleted through the ORM is deleted as `delete_conversation` does it.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db.models.signals import pre_delete

from conversations import conf


def connect() -> None:
    """Connect the receivers; called once from `ConversationsConfig.ready`."""
    from conversations.models import ConversationState

    pre_delete.connect(
        _user_deleted, sender=get_user_model(), dispatch_uid="conversations.user_deleted"
    )
    pre_delete.connect(
        _conversation_deleted,
        sender=ConversationState,
        dispatch_uid="conversations.conversation_deleted",
    )


def _user_deleted(sender: Any, instance: Any, using: str, **kwargs: Any) -> None:
    from conversations.deletion import delete_all_of

    if using == conf.alias():
        delete_all_of(str(instance.pk))


def _conversation_deleted(sender: Any, instance: Any, using: str, **kwargs: Any) -> None:
    from conversations.deletion import delete

    if using == conf.alias():
        delete(instance.conversation_id, owner=None)
