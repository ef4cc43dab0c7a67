"""When a message says it was: in every spelling that real formats have, and never a trap."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given, settings, strategies as st

from conversations.content.codec import decode_message, encode_item, encode_message
from conversations.content.moments import moment_of, parse_timestamp
from conversations.formats import export_lines, import_lines
from conversations.models import ConversationMessage, ConversationState, ConversationTombstone
from conversations.rollout.sync import sync
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryContextItem
from tests.support.scale import pure_examples

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATED = datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)
SECONDS = 1767323045.25


@pytest.mark.parametrize(
    ("stated", "moment"),
    [
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-02-30T00:00:00", None),
        ("9999-12-31T23:59:59-05:00", None),
        ("0001-01-01T00:00:00+05:00", None),
        ("9998-01-01T00:00:00", None),
        ("0002-12-31T00:00:00", None),
        ("soon", None),
        ("", None),
        ("2026-01-02T03:04:05" + " " * 40, None),
        (1767323045, None),
        # A time of the year 1712, if its digits were a date.
        ("1712010112345", None),
        (None, None),
        ({}, None),
    ],
)
def test_only_a_moment_that_every_database_reads_is_taken_from_a_text(
    stated: Any, moment: datetime | None
) -> None:
    assert parse_timestamp(stated) == moment


@pytest.mark.parametrize(
    ("stated", "moment"),
    [
        (1767323045, NOW),
        (1767323045.0, NOW),
        (SECONDS, STATED),
        (1767323045250, STATED),
        (1767323045250.0, STATED),
        ("1767323045", NOW),
        ("1767323045.250000", STATED),
        ("1767323045250", STATED),
        ("2026-01-02T03:04:05.250Z", STATED),
        # The bounds of seconds, and of milliseconds.
        (10**8, datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        (10**11 - 1, datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        (10**11, datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        (10**14 - 1000, datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        # Turn numbers, offsets, and what is too much for any calendar.
        *((value, None) for value in (0, 1, -1, 12.5, 10**8 - 1, -1767323045, 10**14, 10**400)),
        *((float(value), None) for value in ("inf", "-inf", "nan", "1e300", "-0.0")),
        *((value, None) for value in (True, False, None, [], {}, [1767323045])),
        *((value, None) for value in ("20260102", "20260102030405", "17673230451", "١٧٦٧٣٢٣٠٤٥")),
    ],
)
def test_numbers_are_seconds_or_milliseconds_by_their_size(
    stated: Any, moment: datetime | None
) -> None:
    assert moment_of(stated) == moment


@settings(max_examples=pure_examples(2000))
@given(value=st.integers() | st.floats() | st.text("0123456789.", max_size=18) | st.booleans())
def test_no_number_is_a_moment_that_a_database_cannot_read(value: Any) -> None:
    moment = moment_of(value)
    assert moment is None or 1973 <= moment.year <= 5138


@pytest.mark.parametrize("key", ["timestamp", "created_at", "createdAt", "create_time"])
@pytest.mark.parametrize("stated", [SECONDS, 1767323045250, "2026-01-02T03:04:05.250Z"])
def test_the_time_is_found_where_real_formats_put_it_and_the_message_stays(
    key: str, stated: Any
) -> None:
    message = {"role": "user", "content": "x", key: stated}
    columns = encode_message(message, now=NOW)
    assert columns["timestamp"] == STATED
    assert json.dumps(decode_message(columns)) == json.dumps(message)
    assert encode_item({"content": "x", key: stated}, now=NOW)["timestamp"] == STATED


def test_the_first_possible_time_of_several_counts() -> None:
    message = {"create_time": SECONDS, "created_at": "soon", "timestamp": None}
    assert encode_message(message, now=NOW)["timestamp"] == STATED


def test_a_message_without_a_time_gets_the_time_of_its_save() -> None:
    assert encode_message({}, now=NOW)["timestamp"] == NOW
    assert encode_message("text", now=NOW)["timestamp"] == NOW
    assert encode_message({"created_at": None}, now=NOW)["timestamp"] == NOW
    assert encode_item({}, now=NOW)["timestamp"] == NOW


@pytest.mark.parametrize("stated", ["9999-12-31T23:59:59-05:00", 1e300, True, 0, "soon", {}])
def test_a_message_with_an_impossible_time_gets_none_and_keeps_what_it_said(stated: Any) -> None:
    message = {"timestamp": stated}
    columns = encode_message(message, now=NOW)
    assert columns["timestamp"] is None
    assert decode_message(columns) == message
    assert encode_item(message, now=NOW)["timestamp"] is None


# In the tables

MESSAGES: list[Any] = [
    {"role": "user", "content": "a", "timestamp": SECONDS},
    {"role": "user", "content": "b", "created_at": 1767323045250},
    {"role": "user", "content": "c", "timestamp": 253402300800000},
    {"role": "user", "content": "d", "timestamp": True},
]
ITEMS: list[Any] = [{"content": "i", "created_at": SECONDS}]
TIMES = [STATED, STATED, None, None]


def times() -> list[datetime | None]:
    rows = ConversationMessage.rows.order_by("sequence").values_list("timestamp", flat=True)
    return list(rows)


@pytest.mark.django_db
def test_a_save_an_append_a_sync_and_an_import_find_the_same_times() -> None:
    written = AgentState(conversation_history=MESSAGES, memory_context=ITEMS)
    save_state("a", written)
    assert times() == TIMES
    assert list(MemoryContextItem.objects.values_list("timestamp", flat=True)) == [STATED]
    lines = list(export_lines())
    for again in (
        lambda: append_messages("b", MESSAGES, create=True),
        lambda: list(import_lines(lines)),
        lambda: _synced(written),
    ):
        ConversationState.rows.all().delete()
        ConversationTombstone.rows.all().delete()
        again()
        assert times() == TIMES
    assert load_state("c").conversation_history == MESSAGES


def _synced(written: Any) -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", written)
    list(sync("tables", ["c"]))


@pytest.mark.django_db
def test_a_row_written_before_its_time_was_understood_gets_it_when_it_is_imported() -> None:
    append_messages("a", MESSAGES[:1], create=True)
    lines = list(export_lines())
    ConversationMessage.rows.update(timestamp=timezone.now())
    assert list(export_lines()) == lines
    ConversationState.rows.all().delete()
    ConversationTombstone.rows.all().delete()
    list(import_lines(lines))
    assert times() == TIMES[:1]
