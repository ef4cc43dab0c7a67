"""A line that is no conversation is invalid by its place, and writes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from conversations.formats import ImportOutcome, Result
from conversations.models import ConversationState
from conversations.state import AgentState
from tests.support.exports import imported, line_of, results

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a', "line 1: column 2: is no JSON: Unterminated string starting at"),
        ("[" * 100_000, "line 1: is no JSON that can be read (RecursionError)"),
        ("[]", "line 1: is a list, not an object"),
        (line_of(format=True), "line 1: format: is not 1, the one format this version reads"),
        (line_of(format=2), "line 1: format: is not 1, the one format this version reads"),
        (line_of(state=...), "line 1: state: is missing"),
        (line_of(conversation_id=7), "line 1: conversation_id: is a int, not a string"),
        (
            line_of(conversation_id="\x00"),
            "line 1: conversation_id: '\\x00' must have 1 to 255 characters, without NUL and lone"
            " surrogates",
        ),
        (line_of(user=7), "line 1: user: is a int, not a string"),
        (
            line_of(user="1", legacy_user="2"),
            "line 1: legacy_user: stands beside a user: a line has one owner",
        ),
        (line_of(forked_from="c"), "line 1: forked_from: is the conversation itself"),
        (line_of(state=[]), "line 1: state: is a list, not an object"),
        (
            line_of(state={"_baseline": {}}),
            "line 1: state._baseline: belongs to one load, not to a file",
        ),
        (
            line_of(state={"step_count": "secret"}),
            "line 1: state.step_count: is a str, not a int",
        ),
        (line_of(messages={}), "line 1: messages: is a dict, not a list"),
        (line_of(messages=[[1, None]]), "line 1: messages: has 1 places for 2 messages"),
        (
            line_of(messages=[[1, None], 2]),
            "line 1: messages[1]: is no sequence and key in a list",
        ),
        *(
            (
                line_of(messages=[[1, None], [sequence, None]]),
                "line 1: messages[1][0]: must be a whole number above the one before",
            )
            for sequence in (1, 0, -1, 2.0, True, "2", 2**63)
        ),
        (
            line_of(messages=[[1, "k"], [2, "k"]]),
            "line 1: messages[1][1]: is the key of two messages",
        ),
        *(
            (line_of(messages=[[1, "k", extras], [2, None]]), f"line 1: messages[0][2]{reason}")
            for extras, reason in (
                (None, ": is no object of first_digest and timestamp"),
                ({"other": 1}, ": is no object of first_digest and timestamp"),
                ({"first_digest": "00"}, ".first_digest: is no digest of 16 bytes in hex"),
                ({"first_digest": 5}, ".first_digest: is no digest of 16 bytes in hex"),
            )
        ),
        (
            line_of(messages=[[1, None, {"first_digest": "00" * 16}], [2, None]]),
            "line 1: messages[0][2].first_digest: is of a key, and there is none",
        ),
        *(
            (
                line_of(next_sequence=value),
                "line 1: next_sequence: is no whole number above every sequence",
            )
            for value in (None, 4, True, 6.0, 2**63)
        ),
        (line_of(messages=[[1, 5], [2, None]]), "line 1: messages[0][1]: is a int, not a string"),
        *(
            (
                line_of(**{name: value}),
                f"line 1: {name}: impossible date: must be ISO 8601 with a time zone, in the"
                " years 3 to 9997",
            )
            for name in ("created_at", "updated_at")
            for value in (
                "9999-12-31T23:59:59-05:00",
                "0001-01-01T00:00:00+05:00",
                "2026-02-30T00:00:00+00:00",
                "2026-01-01T00:00:00",
                "2026-01-01",
                "yesterday",
                1767225600,
            )
        ),
        (
            line_of(created_at=None),
            "line 1: created_at, updated_at: is null, but the other time is not",
        ),
    ],
)
def test_a_malformed_line_is_invalid_by_its_place_and_writes_nothing(
    line: str, reason: str
) -> None:
    assert imported([line]) == [ImportOutcome(1, None, Result.INVALID, reason)]
    assert not ConversationState.objects.exists()


def test_an_impossible_time_of_a_message_is_invalid() -> None:
    impossible = {"timestamp": "9999-12-31T23:59:59-05:00"}
    ((result, reason),) = results([line_of(messages=[[1, None, impossible], [2, None]])])
    assert (result, reason[:58]) == (
        "invalid",
        "line 1: messages[0][2].timestamp: impossible date: must be",
    )


def test_an_unknown_field_is_invalid_because_it_would_be_lost() -> None:
    ((result, reason),) = results([line_of(extra=1)])
    assert (result, reason[:30]) == ("invalid", "line 1: has 1 fields beside fo")


def test_nesting_deeper_than_the_limit_is_invalid() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    state = AgentState(conversation_history=["a", deep]).to_dict()
    ((result, reason),) = results([line_of(state=state)])
    assert result == "invalid"
    assert reason.startswith("line 1: state.conversation_history[1][0]")
