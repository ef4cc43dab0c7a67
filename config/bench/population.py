"""A database full of conversations, made quickly: what a million messages are measured on.

The rows are those that `save_state` would have written: digests and numbers are right, and every
conversation loads, saves and verifies as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from typing import Any

from django.contrib.auth import get_user_model

from config.bench import blobs, surroundings
from config.bench.inserting import insert, moment, next_id, settle
from config.bench.rows import Row, row_of
from config.demo import synthetic
from conversations.codec import ITEM_COLUMNS, MESSAGE_COLUMNS, encode_item
from conversations.digests import EMPTY, digest_of, roll
from conversations.documents import (
    DEFAULTS,
    ITEMS,
    MESSAGES,
    Document,
    field_digests,
    fields_digest,
)
from conversations.fieldcodec import encode_fields
from conversations.models import ConversationState
from conversations.stores.normalized.items import POSITION_GAP
from memory.models import MemoryChunk

# Different messages; each comes again and again, in another order.
_TEXTS = 2_000
# The latest activity of all, so that the same seed gives the same rows.
_END = datetime(2026, 1, 1, tzinfo=UTC)
_GAP = timedelta(seconds=7)
# Half of the conversations have about a quarter of the messages.
_SHAPES = (1, 1, 1, 2, 2, 3, 3, 4, 8, 15)
CONVERSATIONS_A_USER = 50
# What a conversation has beside its messages goes by its number, modulo this.
KINDS = 20
_MOST_ITEMS = 10
_BATCH = 5_000

_STATE_COLUMNS = (
    *("id", "conversation_id", "user_id", "user_input", "focus_areas", "step_count"),
    *("last_tool_result", "extra", "revision", "next_sequence", "next_item_sequence"),
    *("message_count", "context_item_count", "context_items_revision", "redaction_count"),
    *("messages_digest", "state_digest", "legacy_revision", "legacy_token"),
    *("verified_revision", "created_at", "updated_at"),
)
_MESSAGE_ROW = (
    *("conversation_id", "sequence", "added_in", "superseded_in", "superseded_at"),
    *MESSAGE_COLUMNS,
    *("digest", "timestamp"),
)
_ITEM_ROW = (
    *("conversation_id", "sequence", "position", "added_in"),
    *ITEM_COLUMNS,
    *("digest", "timestamp"),
)
# A message or an item, and its columns.
_Text = tuple[Any, Row]


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

    def moment(self, number: int) -> datetime:
        """Return when a conversation was written last."""
        return _END - _GAP * (len(self.lengths) - number)


@dataclass(frozen=True, slots=True)
class _One:
    """A conversation as it is to be written."""

    number: int
    pk: int
    messages: tuple[_Text, ...]
    items: tuple[_Text, ...]
    legacy: blobs.Held
    # What its first message said before it was edited.
    edited: _Text | None

    @property
    def revision(self) -> int:
        return 1 if self.edited is None else 2

    @property
    def redactions(self) -> int:
        # As `surroundings` writes them.
        return self.number % 2 if self.items else 0

    @property
    def document(self) -> Document:
        messages, items = ([value for value, _ in texts] for texts in (self.messages, self.items))
        return Document(_fields(), messages, items)


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
    `progress` is called with the number of messages written so far. About 100,000 messages a
    second (PostgreSQL: COPY), half of that with what is beside them.

    Returns: who owns what. The tables are analysed then.
    """
    random = Random(seed)
    owners = _users(prefix, max(conversations // CONVERSATIONS_A_USER, 1))
    lengths = _lengths(messages, conversations, random)
    texts, items = _texts(seed)
    made = Population(prefix, owners, lengths, next_id("conversation_states"))
    first_chunk = next_id("memory_chunks")
    written = 0
    for start in range(0, conversations, _BATCH):
        numbers = range(start, min(start + _BATCH, conversations))
        batch = [
            _one(made, number, random.randrange(len(texts)), texts, items, first_chunk, beside)
            for number in numbers
        ]
        insert("conversation_states", _STATE_COLUMNS, (_state(made, one) for one in batch))
        insert("conversation_messages", _MESSAGE_ROW, (row for one in batch for row in _said(one)))
        if beside:
            insert("memory_context_items", _ITEM_ROW, (row for one in batch for row in _held(one)))
            blobs.write(
                [
                    blobs.Told(
                        one.number,
                        made.name(one.number),
                        made.owner(one.number),
                        one.document,
                        made.moment(one.number),
                        one.legacy,
                    )
                    for one in batch
                ]
            )
        written += sum(lengths[number] for number in numbers)
        if progress is not None:
            progress(written)
    if beside:
        surroundings.fill(made.first, conversations, prefix=prefix)
    settle(("conversation_states", "memory_chunks"))
    return made


def populated(*, beside: bool = False) -> None:
    """Fill empty tables with 10,000 messages: plans made for empty ones are not those of a host.

    `beside`: legacy as well, for ways that look there; see `populate`. Where another workload has
    filled the tables alone, as many are added that stand in both.
    """
    if not ConversationState.rows.exists():
        populate(messages=10_000, conversations=500, beside=beside)
    elif beside and not MemoryChunk.objects.exists():
        populate(messages=10_000, conversations=500, prefix="beside-", beside=True)


def _users(prefix: str, count: int) -> tuple[Any, ...]:
    model = get_user_model()
    named = model.USERNAME_FIELD
    users = [model(**{named: f"{prefix}user-{number}"}) for number in range(count)]
    model._base_manager.bulk_create(users, batch_size=500)
    names = {f"{prefix}user-{number}" for number in range(count)}
    found = model._base_manager.filter(**{f"{named}__startswith": f"{prefix}user-"})
    return tuple(pk for pk, name in found.order_by("pk").values_list("pk", named) if name in names)


def _lengths(messages: int, conversations: int, random: Random) -> tuple[int, ...]:
    """Return how long each conversation is; together exactly `messages`."""
    weights = [random.choice(_SHAPES) for _ in range(conversations)]
    total = sum(weights)
    lengths, reached, before = [], 0, 0
    for weight in weights:
        reached += weight
        upto = messages * reached // total
        lengths.append(upto - before)
        before = upto
    return tuple(lengths)


def _texts(seed: int) -> tuple[list[_Text], list[_Text]]:
    """Return the messages and the context items that all is made of."""
    found = [one.state for one in synthetic.conversations(seed=seed)]
    messages = (message for state in found for message in state.conversation_history)
    items = (item for state in found for item in state.memory_context)
    return [(message, row_of(message, now=_END)) for message in islice(messages, _TEXTS)], [
        (item, _item_row(item)) for item in items
    ]


def _item_row(item: Any) -> Row:
    columns = encode_item(item, now=_END)
    return (*(columns[name] for name in ITEM_COLUMNS), digest_of(item), columns["timestamp"])


def _one(
    made: Population,
    number: int,
    offset: int,
    texts: Sequence[_Text],
    items: Sequence[_Text],
    first_chunk: int,
    beside: bool,
) -> _One:
    length, held = made.lengths[number], number % _MOST_ITEMS if beside else 0
    is_edited = beside and number % 4 == surroundings.EDITED and length > 0
    return _One(
        number,
        made.first + number,
        tuple(_chosen(texts, offset, length)),
        tuple(_chosen(items, offset, held)),
        blobs.held(number, first_chunk) if beside else blobs.NOTHING,
        texts[(offset + length) % len(texts)] if is_edited else None,
    )


def _chosen(texts: Sequence[_Text], offset: int, length: int) -> Iterator[_Text]:
    return (texts[(offset + place) % len(texts)] for place in range(length))


def _fields() -> dict[str, Any]:
    return {name: value for name, value in DEFAULTS.items() if name not in (ITEMS, MESSAGES)}


def _state(made: Population, one: _One) -> Row:
    fields = _fields()
    columns = encode_fields(fields)
    length, items = len(one.messages), len(one.items)
    written = moment(made.moment(one.number))
    verified = one.revision if one.legacy.revision else -1
    return (
        one.pk,
        made.name(one.number),
        made.owner(one.number),
        *(columns[name] for name in _STATE_COLUMNS[3:8]),
        *(one.revision, length + 1, items + 1, length, items, 1 if items else 0),
        one.redactions,
        roll(EMPTY, (row[-2] for _, row in one.messages)),
        fields_digest(field_digests(fields)) + roll(EMPTY, (row[-2] for _, row in one.items)),
        *(one.legacy.revision, one.legacy.token, verified, written, written),
    )


def _said(one: _One) -> Iterator[Row]:
    written = moment(_END)
    if one.edited is not None:
        yield (one.pk, 1, 1, 2, written, *one.edited[1][:-1], written)
    for sequence, (_, row) in enumerate(one.messages, start=1):
        added_in = one.revision if sequence == 1 else 1
        yield (one.pk, sequence, added_in, None, None, *row[:-1], written)


def _held(one: _One) -> Iterator[Row]:
    written = moment(_END)
    for sequence, (_, row) in enumerate(one.items, start=1):
        yield (one.pk, sequence, sequence * POSITION_GAP, 1, *row[:-1], written)
