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
from django.db import connection

from config.bench.rows import Row, row_of
from config.demo import synthetic
from conversations.codec import MESSAGE_COLUMNS
from conversations.digests import EMPTY, roll
from conversations.documents import DEFAULTS, ITEMS, MESSAGES, field_digests, fields_digest
from conversations.fieldcodec import encode_fields
from conversations.models import ConversationState

# Different messages; each comes again and again, in another order.
_TEXTS = 2_000
# The latest activity of all, so that the same seed gives the same rows.
_END = datetime(2026, 1, 1, tzinfo=UTC)
_GAP = timedelta(seconds=7)
# Half of the conversations have about a quarter of the messages.
_SHAPES = (1, 1, 1, 2, 2, 3, 3, 4, 8, 15)
CONVERSATIONS_A_USER = 50
_BATCH = 5_000

_STATE_COLUMNS = (
    *("id", "conversation_id", "user_id", "user_input", "focus_areas", "step_count"),
    *("last_tool_result", "extra", "revision", "next_sequence", "next_item_sequence"),
    *("message_count", "context_item_count", "context_items_revision", "redaction_count"),
    *("messages_digest", "state_digest", "legacy_revision", "legacy_token"),
    *("verified_revision", "created_at", "updated_at"),
)
_INSERTED = (
    *("conversation_id", "sequence", "added_in"),
    *MESSAGE_COLUMNS,
    *("digest", "timestamp"),
)


@dataclass(frozen=True, slots=True)
class Population:
    """What was made. The conversation number n (from 0) is `name(n)`, of the user `owner(n)`."""

    prefix: str
    owners: tuple[Any, ...]
    lengths: tuple[int, ...]

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
    progress: Callable[[int], None] | None = None,
) -> Population:
    """Fill the tables of `default` with so many messages in so many conversations.

    Every user has about 50 of the conversations; their lengths differ by 15 times. The latest
    activities follow each other in the order of the numbers. `progress` is called with the
    number of messages written so far. About 100,000 messages a second (PostgreSQL: COPY).

    Returns: who owns what. The tables are analysed then.
    """
    random = Random(seed)
    owners = _users(prefix, max(conversations // CONVERSATIONS_A_USER, 1))
    lengths = _lengths(messages, conversations, random)
    texts = _texts(seed)
    made = Population(prefix, owners, lengths)
    first = _next_id()
    written = 0
    for start in range(0, conversations, _BATCH):
        numbers = range(start, min(start + _BATCH, conversations))
        offsets = {number: random.randrange(len(texts)) for number in numbers}
        states = (
            _state(made, number, first + number, _chosen(texts, offsets[number], lengths[number]))
            for number in numbers
        )
        _write("conversation_states", _STATE_COLUMNS, states)
        rows = (
            row
            for number in numbers
            for row in _messages(first + number, _chosen(texts, offsets[number], lengths[number]))
        )
        _write("conversation_messages", _INSERTED, rows)
        written += sum(lengths[number] for number in numbers)
        if progress is not None:
            progress(written)
    _settle()
    return made


def populated() -> None:
    """Fill empty tables with 10,000 messages: plans made for empty ones are not those of a host."""
    if not ConversationState.rows.exists():
        populate(messages=10_000, conversations=500)


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


def _texts(seed: int) -> list[Row]:
    found = synthetic.conversations(seed=seed)
    messages = (message for one in found for message in one.state.conversation_history)
    return [row_of(message, now=_END) for message in islice(messages, _TEXTS)]


def _chosen(texts: Sequence[Row], offset: int, length: int) -> Iterator[Row]:
    return (texts[(offset + place) % len(texts)] for place in range(length))


def _state(made: Population, number: int, pk: int, rows: Iterator[Row]) -> Row:
    fields = {name: value for name, value in DEFAULTS.items() if name not in (ITEMS, MESSAGES)}
    columns = encode_fields(fields)
    length = made.lengths[number]
    moment = _moment(_END - _GAP * (len(made.lengths) - number))
    return (
        pk,
        made.name(number),
        made.owner(number),
        *(columns[name] for name in _STATE_COLUMNS[3:8]),
        *(1, length + 1, 1, length, 0, 0, 0),
        roll(EMPTY, (row[-2] for row in rows)),
        fields_digest(field_digests(fields)) + EMPTY,
        *(0, "", -1, moment, moment),
    )


def _messages(pk: int, rows: Iterator[Row]) -> Iterator[Row]:
    moment = _moment(_END)
    for sequence, row in enumerate(rows, start=1):
        yield (pk, sequence, 1, *row[:-1], moment)


def _moment(moment: datetime) -> Any:
    if connection.vendor == "postgresql":
        return moment
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _next_id() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(id), 0) + 1 FROM conversation_states")
        return int(cursor.fetchone()[0])


def _write(table: str, columns: Sequence[str], rows: Iterator[Row]) -> None:
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return
        marks = ", ".join(["%s"] * len(columns))
        cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(rows))


def _settle() -> None:
    """Let new rows get free numbers, and the planner know of those that are there."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT setval(pg_get_serial_sequence('conversation_states', 'id'),"
                " (SELECT max(id) FROM conversation_states))"
            )
            cursor.execute("VACUUM ANALYZE conversation_states, conversation_messages")
        else:
            cursor.execute("ANALYZE")
