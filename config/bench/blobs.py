"""What legacy holds of a population: two blobs of a conversation, and other kinds of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from config.bench.inserting import insert, moment
from config.bench.rows import Row
from conversations.documents import Document
from conversations.stores.chunkformat import CONVERSATION_ID, REVISION_MARK, metadata_of

# Of every conversation: an earlier state and the state, or two other kinds of chunks.
_EACH = 2
_CHUNK = ("id", "user_id", "content", "created_at")
_METADATA = ("chunk_id", "key", "value")
_STEP = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Held:
    """What a row of the tables says of legacy, and the first of the numbers for its chunks."""

    revision: int
    token: str
    chunk: int


NOTHING = Held(0, "", 0)


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation to be written into legacy."""

    number: int
    name: str
    owner: Any
    document: Document
    moment: datetime
    held: Held


def held(number: int, first: int) -> Held:
    """Return how the conversation of that number stands in legacy: every other is in both."""
    chunk = first + _EACH * number
    return Held(1, str(chunk + 1), chunk) if number % 2 == 0 else Held(0, "", chunk)


def write(told: Sequence[Told]) -> None:
    """Write what legacy has of these conversations.

    Of four one has nothing but a summary and a long-term memory, two stand in both stores; beside
    the fourth, legacy alone holds one of the same content, named "unmoved-" and its name.
    """
    chunks: list[Row] = []
    metadata: list[Row] = []
    for one in told:
        for chunk, described in _rows(one):
            chunks.append(chunk)
            metadata += [(chunk[0], key, value) for key, value in described.items()]
    insert("memory_chunks", _CHUNK, chunks)
    insert("memory_metadata", _METADATA, metadata)


def _rows(one: Told) -> Iterator[tuple[Row, dict[str, str]]]:
    if one.number % 4 == 3:
        for place, kind in enumerate(("summary", "ltm")):
            yield (
                (one.held.chunk + place, one.owner, f"a {kind}", moment(one.moment)),
                {"type": kind, CONVERSATION_ID: one.name},
            )
        return
    moved = one.held.revision > 0
    name = one.name if moved else f"unmoved-{one.name}"
    whole = one.document
    before = Document(whole.fields, whole.messages[: len(whole.messages) // 2], whole.items)
    for place, document in enumerate((before, whole)):
        # Behind the tables' moments, so that none of them is that of two conversations.
        written = one.moment + _STEP * (place - 1 if moved else place + 1)
        described = metadata_of(name, document, written)
        if moved and place:
            described[REVISION_MARK] = str(one.held.revision)
        row = (one.held.chunk + place, one.owner, document.to_json(), moment(written))
        yield row, described
