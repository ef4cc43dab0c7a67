"""Undo the changes that a JSON column makes: to key order, 1.0 and -0.0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.db import Error

from conversations import conf
from conversations.content.digests import loose_digest, same_values
from conversations.content.document import Document
from conversations.content.entries import Entry
from conversations.models import ConversationState
from conversations.routing.transactions import attempt, lost
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore
from conversations.stores.types import Stored


def restored(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, stored: Stored
) -> Stored:
    """Return legacy's content with the changes of a JSON column undone where the tables know.

    Key order, 1.0 and -0.0 are as the tables have them, so that a message is the same in both.
    """
    if legacy.exact:
        return stored
    document = stored.document
    try:
        with attempt():
            items = tables.items(row)[0] if row.context_item_count else []
            exact = Document(
                _exact_fields(document.fields, tables.fields(row)),
                _exact(document.messages, tables.versions(row, values=True)),
                _exact(document.items, items),
            )
    except Error:
        if lost(conf.alias()):
            raise
        return stored
    return replace(stored, document=exact)


def _exact(theirs: Sequence[Any], known: Sequence[Entry]) -> list[Any]:
    """Return the known form of each value; by turns where forms look alike: 1 and 1.0."""
    digests = [loose_digest(entry.value) for entry in known]
    alike: dict[bytes, list[Any]] = {}
    for digest, entry in zip(digests, known, strict=True):
        if entry.superseded_in is None:
            alike.setdefault(digest, []).append(entry.value)
    # Where none of them is current, the latest one.
    for digest, entry in zip(reversed(digests), reversed(known), strict=True):
        alike.setdefault(digest, [entry.value])
    exact = []
    for value in theirs:
        like = alike.get(loose_digest(value), [value])
        if len(like) == 1:
            # The last form serves all later values.
            exact.append(like[0])
            continue
        # A JSON column mostly keeps 1.0.
        places = (place for place, each in enumerate(like) if same_values(each, value))
        exact.append(like.pop(next(places, 0)))
    return exact


def _exact_fields(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Undo the changes of a JSON column to known fields, and to their order."""
    known = {
        name: value
        for name, value in ours.items()
        if name in theirs and loose_digest(theirs[name]) == loose_digest(value)
    }
    ordered = [name for name in ours if name in theirs] + [n for n in theirs if n not in ours]
    return {name: known.get(name, theirs[name]) for name in ordered}
