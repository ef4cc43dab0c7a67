"""Redact a text: rewrite every stored version that holds it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone

from conversations import conf
from conversations.content import redaction
from conversations.content.changes.change import Change
from conversations.content.entries import Entry
from conversations.exceptions import ConversationNotFound, MessageNotFound
from conversations.models import ConversationConflict, ConversationRedaction, ConversationState
from conversations.routing.locks import lock
from conversations.routing.standing import Decision, decide, in_transaction
from conversations.signals import conversation_redacted, send_on_commit
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, redactions_of
from conversations.stores.registry import configured_store
from conversations.writing.fork import touch
from conversations.writing.write import write
from flags.texts import quoted


def erase(
    conversation_id: str, reference: int | str, *, replacement: str, owner: str | None
) -> int:
    """Redact one message everywhere, in one transaction. Returns: rewritten versions."""
    with in_transaction(conversation_id) as decision:
        row = _at_truth(conversation_id, decision, owner=owner)
        tables, legacy = NormalizedStore(), configured_store()
        versions = tables.versions(row, values=True)
        by_key = isinstance(reference, str)
        chosen = [e for e in versions if reference == (e.key if by_key else e.identity)]
        if not chosen:
            raise MessageNotFound(f"there is no message {quoted(reference)} in this conversation.")
        chosen = _succession(chosen, versions)
        hashes = {redaction.text_hash(entry.value) for entry in chosen}
        texts = {text for entry in chosen for text in _texts(entry.value)}
        rewritten = 0
        for target in [row, *_forks(row, decision)]:
            rewritten += _erase_in(
                target, tables, legacy, hashes, texts, replacement=replacement, now=timezone.now()
            )
            send_on_commit(conversation_redacted, target.conversation_id)
        return rewritten


def inherit(origin: str, fork: str) -> None:
    """Redact in a conversation, and in its forks, the texts that were redacted in its origin.

    Inside the caller's transaction, for a fork that came here without its origin.
    """
    rows = ConversationState.rows.using(conf.alias())
    by_replacement: dict[str, set[bytes]] = defaultdict(set)
    for text, replacement in redactions_of(rows.get(conversation_id=origin)).items():
        by_replacement[replacement].add(text)
    if not by_replacement:
        return
    tables, legacy = NormalizedStore(), configured_store()
    decision = decide(fork)
    row = _at_truth(fork, decision, owner=None)
    for target in [row, *_forks(row, decision)]:
        for replacement, hashes in by_replacement.items():
            _erase_in(
                target, tables, legacy, hashes, (), replacement=replacement, now=timezone.now()
            )


def _succession(chosen: Sequence[Entry], versions: Sequence[Entry]) -> list[Entry]:
    """Return every version of the chosen messages: an insertion before one gives it a new place."""
    linked: dict[int, set[int]] = defaultdict(set)
    for entry in versions:
        if entry.supersedes is not None:
            linked[entry.stored_row].add(entry.supersedes)
            linked[entry.supersedes].add(entry.stored_row)
    found: set[int] = set()
    pending = {entry.stored_row for entry in chosen}
    while pending:
        found |= pending
        pending = {other for row in pending for other in linked[row]} - found
    return [entry for entry in versions if entry.stored_row in found]


def _at_truth(conversation_id: str, decision: Decision, *, owner: str | None) -> ConversationState:
    """Lock the row, after the tables have ingested the content that only legacy holds.

    Legacy is locked first where it can be, so that it takes no write meanwhile.
    """
    legacy = configured_store()
    if legacy is not None:
        legacy.token(conversation_id)
    write(conversation_id, touch(), owner=owner, decision=decision)
    row = lock(conversation_id)
    if row is None:
        raise ConversationNotFound
    return row


def _forks(row: ConversationState, decision: Decision) -> list[ConversationState]:
    """Return the forks of a conversation, and their forks, each locked."""
    found: list[ConversationState] = []
    parents = [row.pk]
    while parents:
        forks = ConversationState.rows.using(conf.alias()).filter(forked_from__in=parents)
        ids = list(forks.order_by("pk").values_list("conversation_id", flat=True))
        locked = [_at_truth(name, decision.of(name), owner=None) for name in ids]
        found += locked
        parents = [fork.pk for fork in locked]
    return found


def _texts(message: Any) -> set[str]:
    """Return the texts of a message that records might repeat."""
    content = message.get("content") if isinstance(message, dict) else message
    parts = content if isinstance(content, list) else [content]
    found = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return {text for text in found if isinstance(text, str)} - {""}


def _erase_in(
    row: ConversationState,
    tables: NormalizedStore,
    legacy: LegacyStore | None,
    hashes: Collection[bytes],
    texts: Collection[str],
    *,
    replacement: str,
    now: datetime,
) -> int:
    """Redact in one conversation. Returns: how many versions were rewritten."""
    versions = tables.versions(row, values=True)
    hit = [entry for entry in versions if redaction.text_hash(entry.value) in hashes]
    known = redactions_of(row)
    ConversationRedaction.rows.using(conf.alias()).bulk_create(
        [
            ConversationRedaction(
                conversation_id=row.pk, text_hash=text, replacement=replacement, created_at=now
            )
            for text in hashes
            if text not in known
        ]
    )
    for entry in hit:
        form = redaction.redacted_form(entry.value, replacement)
        tables.rewrite_version(row, entry, form, now=now)
    _erase_records(row, texts, replacement)
    everything = {**known, **dict.fromkeys(hashes, replacement)}
    equal = row.revision == row.legacy_revision
    revision = max(row.revision, row.legacy_revision) + 1
    columns: dict[str, Any] = {"redaction_count": len(everything)}
    if legacy is not None:
        columns["legacy_token"] = legacy.rewrite(
            row.conversation_id,
            lambda document: redaction.applied_to(document, everything),
            known=row.legacy_token,
        )
        if equal:
            legacy.renumber(row.conversation_id, old=row.legacy_revision, new=revision)
            columns["legacy_revision"] = revision
    current = [entry for entry in versions if entry.superseded_in is None]
    change = Change(messages=(current, current), columns=columns)
    tables.write(row, change, revision=revision, now=row.updated_at)
    return len(hit)


def _erase_records(row: ConversationState, texts: Collection[str], replacement: str) -> None:
    """Replace the text in the records of merges."""
    records = ConversationConflict.rows.using(conf.alias()).filter(conversation_id=row.pk)
    for record in records:
        detail = json.dumps(_without(json.loads(record.detail), texts, replacement))
        if detail != record.detail:
            records.filter(pk=record.pk).update(detail=detail)


def _without(value: Any, texts: Collection[str], replacement: str) -> Any:
    if isinstance(value, str):
        # Whole texts only: a short one also occurs inside unrelated texts.
        return replacement if value in texts else value
    if isinstance(value, list):
        return [_without(inner, texts, replacement) for inner in value]
    if isinstance(value, dict):
        return {name: _without(inner, texts, replacement) for name, inner in value.items()}
    return value
