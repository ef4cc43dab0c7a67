"""Signals of what the public API did, sent when the transaction around it has committed.

A receiver takes `sender` (the model ConversationState) and the arguments named here. Its error is
logged by Django, and neither undoes nor fails the operation. Imports, syncs and merges of old
code's writes send nothing, as bulk operations of Django. Without autocommit nothing is sent: only
the caller knows when it commits.
"""

from __future__ import annotations

from typing import Any

from django.db import connections, transaction
from django.dispatch import Signal

from conversations import conf
from conversations.models import ConversationState

__all__ = ["conversation_deleted", "conversation_redacted", "conversation_saved"]

# Provides args: conversation_id, revision (0 in phase legacy, which numbers none). Messages, items
# or fields changed, by a save, an append, an edit or a clearing; or a conversation began, also as
# a fork.
conversation_saved = Signal()
# Provides args: conversation_id. A text of it was redacted; sent for each fork with the text, too.
conversation_redacted = Signal()
# Provides args: conversation_id, reason ("deleted" or "owner deleted").
conversation_deleted = Signal()


def send_on_commit(signal: Signal, conversation_id: str, **arguments: Any) -> None:
    """Send a signal when the open transaction commits; at once where none is open."""
    if not signal.receivers:
        return
    connection = connections[conf.alias()]
    if not (connection.in_atomic_block or connection.get_autocommit()):
        return

    def send() -> None:
        signal.send_robust(ConversationState, conversation_id=conversation_id, **arguments)

    transaction.on_commit(send, using=conf.alias())
