"""Forking: a new conversation that begins as a copy of another."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction

from conversations import conf
from conversations.changes import EditMessages, SaveState
from conversations.documents import Checked, Document
from conversations.exceptions import ConversationNotFound
from conversations.models import ConversationRedaction, ConversationState
from conversations.operations import write
from conversations.stores.normalized import NormalizedStore, owner_of
from conversations.transactions import translated


@dataclass(slots=True)
class Fork(SaveState):
    """Make the copy, and note where it came from."""

    forked_from: int | None = None
    # Only a row can say where it came from, so that a redaction finds its copies.
    needs_rows: bool = True


def touch() -> EditMessages:
    """Change nothing, but have the tables hold the conversation's latest content."""
    return EditMessages(lambda view, redactions: ([], []))


def fork(conversation_id: str, at: int | None, *, owner: str | None) -> str:
    """Copy a conversation up to a sequence, in one transaction. Returns: the new id."""
    with translated(conversation_id), transaction.atomic(using=conf.alias()):
        source = write(conversation_id, touch(), owner=owner).row
        if source is None:
            raise ConversationNotFound
        tables = NormalizedStore()
        messages = [
            entry.value
            for entry in tables.messages(source)
            if at is None or (entry.identity or 0) <= at
        ]
        whole = tables.document(source)
        document = Document(whole.fields, messages, whole.items)
        copy = Fork(Checked.of(document), None, forked_from=source.pk)
        made = str(uuid.uuid4())
        write(made, copy, owner=owner_of(source) if source.user_id is not None else None)
        rows = ConversationState.rows.using(conf.alias())
        _inherit_redactions(source, rows.get(conversation_id=made))
        if source.legacy_user_id is not None:
            rows.filter(conversation_id=made).update(legacy_user_id=source.legacy_user_id)
        return made


def _inherit_redactions(source: ConversationState, fork: ConversationState) -> None:
    """Let what was redacted in the origin be recognised when it is written to the fork."""
    if not source.redaction_count:
        return
    redactions = ConversationRedaction.rows.using(conf.alias())
    inherited = list(redactions.filter(conversation_id=source.pk))
    for redaction in inherited:
        redaction.pk, redaction.conversation_id = None, fork.pk
    redactions.bulk_create(inherited)
    rows = ConversationState.rows.using(conf.alias())
    rows.filter(pk=fork.pk).update(redaction_count=source.redaction_count)
