"""A database full of conversations: what a million messages are measured on.

They are imported, so that every one loads, saves and verifies as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from random import Random
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models import Max

from benchmarks import fixtures
from config.demo import synthetic
from conversations.content.document import DEFAULTS, ITEMS, MESSAGES, Document
from conversations.formats import TOGETHER, Read, Record, Result, import_records
from conversations.models import ConversationState
from conversations.stores.chunks.format import CONVERSATION_ID, REVISION_MARK, metadata_of
from memory.models import MemoryChunk, MemoryMetadata

# The latest activity of all, so that the same seed gives the same rows.
_END = datetime(2026, 1, 1, tzinfo=UTC)
_GAP, _SECOND = timedelta(seconds=7), timedelta(seconds=1)
# Half of the conversations have about a quarter of the messages.
_SHAPES = (1, 1, 1, 2, 2, 3, 3, 4, 8, 15)
CONVERSATIONS_A_USER = 50
# What a conversation has beside its messages goes by its number, modulo this.
KINDS = 20
_MOST_ITEMS = 10
_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Population:
    """What was made. The conversation number n (from 0) is `name(n)`, of the user `owner(n)`.

    `first` is the primary key of number 0.
    """

    prefix: str
    owners: tuple[Any, ...]
    lengths: tuple[int, ...]
    first: int

    def name(self, number: int) -> str:
        """Return the id of a conversation."""
        return f"{self.prefix}{number:07}"

    def owner(self, number: int) -> Any:
        """Return the primary key of the user whose conversation it is."""
        return self.owners[number % len(self.owners)]


def populate(
    *,
    messages: int,
    conversations: int,
    seed: int = synthetic.SEED,
    prefix: str = "population-",
    beside: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Population:
    """Fill the tables of `default` with so many messages in so many conversations.

    Every user has about 50 of the conversations; their lengths differ by 15 times. The latest
    activities follow each other in the order of the numbers. `beside`: every other table grows
    with them; conversations have up to 9 context items, a quarter an edited message, half stand
    in legacy as well, a quarter more in legacy alone, and half of them have records of any kind.
    `progress` is called with the number of messages written so far.

    Returns: who owns what. The tables are analysed then.
    """
    random = Random(seed)
    owners = _users(prefix, max(conversations // CONVERSATIONS_A_USER, 1))
    weights = [random.choice(_SHAPES) for _ in range(conversations)]
    total, reached, bounds = sum(weights), 0, [0]
    for weight in weights:
        reached += weight
        bounds.append(messages * reached // total)
    lengths = tuple(upto - before for before, upto in pairwise(bounds))
    chunk = (MemoryChunk.objects.aggregate(last=Max("pk"))["last"] or 0) + 1
    made = Population(prefix, owners, lengths, first=0)
    records = _records(made, random, seed, beside)
    written = 0
    while batch := list(islice(records, _BATCH)):
        reads = (Read(written + place, record) for place, record in enumerate(batch))
        for outcome in import_records(reads, together=TOGETHER):
            if outcome.result != Result.CREATED:
                raise RuntimeError(f"{outcome.conversation_id}: {outcome.result}")
        if beside:
            _write_legacy(batch, written, chunk)
        written += len(batch)
        if progress is not None:
            progress(bounds[written])
    first = ConversationState.rows.get(conversation_id=made.name(0)).pk
    made = Population(prefix, owners, lengths, first)
    if ConversationState.rows.get(conversation_id=made.name(written - 1)).pk != first + written - 1:
        raise RuntimeError("another process writes into the same database.")
    if beside:
        fixtures.fill(first, conversations, chunk, prefix=prefix)
    _settle()
    return made


def populated(*, beside: bool = False) -> None:
    """Fill empty tables with 10,000 messages: plans made for empty ones are not those of a host.

    `beside`: legacy as well, for contenders that look there; see `populate`. Where another
    workload has filled the tables alone, as many are added that stand in both.
    """
    if not ConversationState.rows.exists():
        populate(messages=10_000, conversations=500, beside=beside)
    elif beside and not MemoryChunk.objects.exists():
        populate(messages=10_000, conversations=500, prefix="beside-", beside=True)


def _users(prefix: str, count: int) -> tuple[Any, ...]:
    model = get_user_model()
    names = [f"{prefix}user-{number}" for number in range(count)]
    users = [model(**{model.USERNAME_FIELD: name}) for name in names]
    model._base_manager.bulk_create(users, batch_size=500)
    known = dict(model._base_manager.values_list(model.USERNAME_FIELD, "pk"))
    return tuple(known[name] for name in names)


def _records(made: Population, random: Random, seed: int, beside: bool) -> Iterator[Record]:
    """Yield what the conversations hold, in the order of their numbers."""
    known = [one.state for one in synthetic.conversations(seed=seed)]
    messages = [message for state in known for message in state.conversation_history]
    items = [item for state in known for item in state.memory_context]
    fields = {name: value for name, value in DEFAULTS.items() if name not in (ITEMS, MESSAGES)}
    for number, length in enumerate(made.lengths):
        start, held = random.randrange(len(messages)), number % _MOST_ITEMS if beside else 0
        moment = _END - _GAP * (len(made.lengths) - number)
        yield Record(
            made.name(number),
            Document(
                dict(fields),
                [messages[(start + place) % len(messages)] for place in range(length)],
                [items[(start + place) % len(items)] for place in range(held)],
            ),
            owner=str(made.owner(number)),
            created_at=moment,
            updated_at=moment,
        )


def _write_legacy(records: Sequence[Record], first: int, chunk: int) -> None:
    """Write two chunks of each conversation into legacy; `first` is the first one's number.

    Of four conversations two stand in both stores, as an earlier state and the state; the fourth
    has nothing but a summary and a long-term memory. Beside the second one, legacy alone holds one
    of the same content, named "unmoved-" and its name.
    """
    chunks, metadata = [], []
    for number, record in enumerate(records, start=first):
        whole, name, in_both = record.document, record.conversation_id, number % 2 == 0
        half = Document(whole.fields, whole.messages[: len(whole.messages) // 2], whole.items)
        for place, document in enumerate((half, whole)):
            # Beside the tables' moments, so that none of them is that of two conversations.
            moment = (record.updated_at or _END) + _SECOND * (place - 1 if in_both else place + 1)
            content = document.to_json()
            told = metadata_of(name if in_both else f"unmoved-{name}", document, moment)
            if in_both and place:
                told[REVISION_MARK] = "1"
            if number % 4 == fixtures.EDITED:
                content = ("a summary", "a long-term memory")[place]
                told = {"type": ("summary", "ltm")[place], CONVERSATION_ID: name}
            pk, owner = chunk + 2 * number + place, int(record.owner or 0)
            chunks.append(MemoryChunk(pk=pk, user_id=owner, content=content, created_at=moment))
            metadata += [MemoryMetadata(chunk_id=pk, key=key, value=told[key]) for key in told]
    MemoryChunk.objects.bulk_create(chunks, batch_size=200)
    MemoryMetadata.objects.bulk_create(metadata, batch_size=200)


def _settle() -> None:
    """Let new chunks get free numbers, and the planner know of all rows that are there."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT setval(pg_get_serial_sequence('memory_chunks', 'id'),"
                " (SELECT coalesce(max(id), 1) FROM memory_chunks))"
            )
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")
