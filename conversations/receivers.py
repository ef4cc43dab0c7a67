"""The receivers that run when a user or a conversation is deleted through Django.

Deleting a user removes their conversations from both stores, and leaves only tombstones.
Deleting a conversation through the ORM does the same as `delete_conversation`. A new connection is
asked whether it carries prepared statements.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_delete

from conversations import conf
from conversations.stores.sql.prepared import ask_new_connection


def connect() -> None:
    """Connect the receivers; called once from `ConversationsConfig.ready`."""
    from conversations.models import ConversationState

    connection_created.connect(ask_new_connection, dispatch_uid="conversations.ask_new_connection")
    pre_delete.connect(
        _user_deleted, sender=get_user_model(), dispatch_uid="conversations.user_deleted"
    )
    pre_delete.connect(
        _conversation_deleted,
        sender=ConversationState,
        dispatch_uid="conversations.conversation_deleted",
    )


def _user_deleted(sender: Any, instance: Any, using: str, **kwargs: Any) -> None:
    from conversations.writing.delete import delete_all_of

    if using == conf.alias():
        delete_all_of(str(instance.pk))


def _conversation_deleted(sender: Any, instance: Any, using: str, **kwargs: Any) -> None:
    from conversations.writing.delete import delete

    if using == conf.alias():
        delete(instance.conversation_id, owner=None)
