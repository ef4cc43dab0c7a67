"""Fork a conversation: make a new one that begins as a copy."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from conversations import conf
from conversations.content.changes import EditMessages, SaveState
from conversations.content.document import Document
from conversations.content.entries import Entry
from conversations.content.turns import Turns
from conversations.content.validation import Checked
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.models import ConversationRedaction, ConversationState
from conversations.routing.standing import in_transaction
from conversations.signals import conversation_saved, send_on_commit
from conversations.stores.normalized import NormalizedStore, owner_of
from conversations.writing.write import write


@dataclass(slots=True)
class Fork(SaveState):
    """Make the copy, and note where it came from."""

    forked_from: int | None = None
    # Only a row can name the origin, by which a redaction finds copies.
    needs_rows: bool = True


def touch() -> EditMessages:
    """Return an operation that only brings the conversation's latest content into the tables."""
    return EditMessages(lambda view, redactions: [])


def fork(conversation_id: str, at: int | None, *, owner: str | None, whole_turns: bool) -> str:
    """Copy a conversation up to a sequence, in one transaction. Returns: the new id.

    Raises: InvalidState where it would separate a tool call from its results, with `whole_turns`.
    """
    with in_transaction(conversation_id) as decision:
        source = write(conversation_id, touch(), owner=owner, decision=decision).row
        if source is None:
            raise ConversationNotFound
        tables = NormalizedStore()
        entries = tables.messages(source)
        copied = [entry for entry in entries if at is None or entry.place <= at]
        if whole_turns:
            _check_turns(entries, len(copied))
        messages = [entry.value for entry in copied]
        whole = tables.document(source)
        document = Document(whole.fields, messages, whole.items)
        copy = Fork(Checked.of(document), None, forked_from=source.pk)
        made = str(uuid.uuid4())
        theirs = owner_of(source) if source.user_id is not None else None
        outcome = write(made, copy, owner=theirs, decision=decision.of(made))
        send_on_commit(conversation_saved, made, revision=outcome.revision)
        rows = ConversationState.rows.using(conf.alias())
        _inherit_redactions(source, rows.get(conversation_id=made))
        if source.legacy_user_id is not None:
            rows.filter(conversation_id=made).update(legacy_user_id=source.legacy_user_id)
        return made


def _check_turns(entries: Sequence[Entry], end: int) -> None:
    """Raise InvalidState where a copy that ends here would separate a call from its results."""
    joined = Turns.of([entry.value for entry in entries]).joined
    if not 0 < end < len(entries) or not joined[end]:
        return
    whole = [place for place in range(1, len(entries)) if not joined[place]]
    ends = [
        *[entries[place - 1].place for place in whole if place < end][-1:],
        *[entries[place - 1].place for place in [*whole, len(entries)] if place > end][:1],
    ]
    raise InvalidState(
        f"this would separate a tool call from its results: give {' or '.join(map(str, ends))},"
        " or whole_turns=False",
        path="at",
    )


def _inherit_redactions(source: ConversationState, fork: ConversationState) -> None:
    """Copy the origin's redactions, so that late writes to the fork are redacted as well."""
    if not source.redaction_count:
        return
    redactions = ConversationRedaction.rows.using(conf.alias())
    inherited = list(redactions.filter(conversation_id=source.pk))
    for redaction in inherited:
        redaction.pk, redaction.conversation_id = None, fork.pk
    redactions.bulk_create(inherited)
    rows = ConversationState.rows.using(conf.alias())
    rows.filter(pk=fork.pk).update(redaction_count=source.redaction_count)
