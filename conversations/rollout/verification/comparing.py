"""Compare a conversation with its digests and counts, and with legacy's content. Pure.

Reports hold places, never content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conversations.content.digests import (
    DIGEST_BYTES,
    EMPTY,
    Blocks,
    digest_of,
    roll,
)
from conversations.content.document import field_digests, fields_digest
from conversations.content.entries import Entry
from conversations.models import ConversationState
from conversations.rollout.verification.kinds import Kind
from conversations.routing.truth import Truth
from conversations.stores.normalized import blocks_of


def kind_of(row: ConversationState, truth: Truth) -> Kind:
    """Return what a conversation is by its numbers; EQUAL has to be shown by the data."""
    if truth in (Truth.MERGE, Truth.LEGACY):
        return Kind.PENDING
    if truth == Truth.NORMALIZED:
        return Kind.LEGACY_BEHIND if row.legacy_revision else Kind.TABLES_ONLY
    return Kind.EQUAL


def digest_mismatches(
    row: ConversationState,
    versions: Sequence[Entry],
    items: Sequence[Entry],
    fields: dict[str, Any],
) -> Iterator[str]:
    """Yield the places whose stored digest or count does not match the rows."""
    current = [entry for entry in versions if entry.superseded_in is None]
    for entry in versions:
        if digest_of(entry.value) != entry.digest:
            yield f"messages: sequence {entry.identity}, version of revision {entry.added_in}"
        if max(entry.added_in, entry.superseded_in or 0) > row.revision:
            yield f"messages: sequence {entry.identity}, later than revision {row.revision}"
    for place, item in enumerate(items):
        if digest_of(item.value) != item.digest:
            yield f"memory_context[{place}]"
    stored, state = bytes(row.messages_digest), bytes(row.state_digest)
    blocks = blocks_of(row)
    if blocks.closed is None:
        expected = Blocks(roll(EMPTY, [entry.digest for entry in current]), None)
    else:
        places = [(entry.place, entry.digest) for entry in current]
        expected = Blocks.of(places, next_sequence=row.next_sequence)
    if (stored, blocks.closed) != (expected.digest, expected.closed):
        yield "messages_digest"
    if state[:DIGEST_BYTES] != fields_digest(field_digests(fields)):
        yield "state_digest of the fields"
    if state[DIGEST_BYTES:] != roll(EMPTY, [entry.digest for entry in items]):
        yield "state_digest of the context items"
    if row.message_count != len(current):
        yield f"message_count {row.message_count} for {len(current)} messages"
    if row.context_item_count != len(items):
        yield f"context_item_count {row.context_item_count} for {len(items)} items"
    if any((entry.identity or 0) >= row.next_sequence for entry in versions):
        yield f"next_sequence {row.next_sequence}"
