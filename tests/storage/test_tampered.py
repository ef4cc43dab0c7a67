"""Cursors and lists come back from browsers: what no page gave is refused, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from conversations.exceptions import InvalidState, MessageNotFound
from conversations.storage import (
    append_messages,
    fork_conversation,
    list_conversations,
    list_messages,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    should_resume_conversation,
)
from flags.phases import Phase
from tests.support.factories import UserFactory, message, messages, state, texts

pytestmark = pytest.mark.django_db


def cursor(
    moment: str = "2026-01-01T00:00:00+00:00", store: str = "legacy", name: str = "c"
) -> str:
    return f"{moment}|{store}|{name}"


TAMPERED: list[Any] = [
    "",
    "|",
    "||",
    5,
    b"x",
    cursor().encode(),
    [cursor()],
    "x" * 10**6,
    cursor(name="x" * 10**6),
    cursor(name="a\x00"),
    cursor(name="a\ud800"),
    cursor("\ud800"),
    cursor("0001-01-01T00:00:00+14:00"),
    cursor("0001-01-01T00:00:00+00:01", "tables"),
    cursor("9999-12-31T23:59:59.999999-14:00"),
    cursor("9999-12-31T23:59:59.999999-00:01", "tables"),
    cursor("2026-01-01"),
    cursor("2026-01-01T00:00:00"),
    cursor("2026-13-01T00:00:00+00:00"),
    cursor("10000-01-01T00:00:00+00:00"),
    cursor("2026-01-01T00:00:00+24:00"),
    cursor("2026-01-01T00:00:00\x00+00:00"),
    cursor("now"),
    cursor(store="Legacy"),
    cursor(store=""),
    cursor(store="legacy "),
]
# Other spellings of what a page may give.
TAKEN = [
    cursor("0001-01-01T00:00:00+00:00"),
    cursor("0001-01-01T00:00:00-23:59"),
    cursor("9999-12-31T23:59:59.999999+00:00"),
    cursor("9999-12-31T23:59:59.999999+00:00", "tables"),
    cursor("9999-12-31T23:59:59.999999+14:00"),
    cursor("2026-01-01T00:00:00+23:59"),
    cursor("2026-01-01T00:00:00+00:00:00.000001"),
    cursor(name=""),
    cursor(name="a|b' %s \\ 日本語"),
]


@pytest.mark.parametrize("bad", TAMPERED, ids=range(len(TAMPERED)))
def test_a_tampered_cursor_is_refused_before_any_sql(no_sql: None, bad: Any) -> None:
    for user in (None, 1):
        with pytest.raises(InvalidState) as refused:
            list_conversations(user, before=bad)
        assert str(refused.value) == "before: is not the cursor of a page"


def test_a_cursor_at_the_limits_of_time_lists_what_is_behind_it(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a"), user)
    for at in TAKEN:
        for owner in (user, None):
            found = [line.conversation_id for line in list_conversations(owner, before=at)]
            assert found == (["c"] if at.startswith("9999") else [])


BIG = [2**31, 2**63 - 1, 2**63, 2**64, 2**70, 10**400]


@pytest.mark.parametrize("number", BIG, ids=range(len(BIG)))
def test_numbers_of_any_size_are_answered(phase: Phase, number: int) -> None:
    save_state("c", state("a"))
    assert len(list_messages("c", before=number)) == 1
    assert len(list_messages("c", before=number, include_superseded=True)) == 1
    assert len(list_messages("c", after=number)) == 0
    assert len(list_messages("c", limit=number)) == 1
    assert len(list_conversations(None, limit=number)) == 1
    loaded = load_state("c", max_messages=number, max_context_items=number)
    assert texts(loaded) == ["a"]
    for refused in (number, -number):
        for call in (
            lambda to: remove_messages("c", [1, to]),
            lambda to: replace_message("c", to, message("x")),
            lambda to: restore_message("c", to),
            lambda to: redact_message("c", to),
        ):
            with pytest.raises(MessageNotFound):
                call(refused)
    assert texts(load_state(fork_conversation("c", number))) == ["a"]
    assert remove_messages("c", last=number) == [message("a")]


@pytest.mark.parametrize("key", ["", "a\x00", "\ud800", "x" * 256, "x" * 10**6])
def test_a_key_that_no_message_can_have_is_not_found(phase: Phase, key: str) -> None:
    save_state("c", state("a"))
    calls: list[Callable[[], Any]] = [
        lambda: remove_messages("c", [key]),
        lambda: replace_message("c", key, message("x")),
        lambda: restore_message("c", key),
        lambda: redact_message("c", key),
    ]
    for call in calls:
        with pytest.raises(MessageNotFound):
            call()
    assert texts(load_state("c")) == ["a"]


@pytest.mark.parametrize("role", ["", "a\x00", "\ud800", "x" * 10**6])
def test_a_role_and_a_tool_that_no_message_has_find_none(phase: Phase, role: str) -> None:
    save_state("c", state("a"))
    for page in (
        list_messages("c", roles=[role]),
        list_messages("c", roles=role),
        list_messages("c", tool_name=role),
    ):
        assert list(page) == []
    assert len(list_messages("c", roles=[role, "user"])) == 1


def test_roles_are_bounded_before_any_sql(no_sql: None) -> None:
    for many in (["user"] * 1001, {f"role{number}" for number in range(300_000)}):
        with pytest.raises(InvalidState) as refused:
            list_messages("c", roles=many)
        assert str(refused.value) == f"roles: {len(many)} roles are more than 1000"


def test_as_many_roles_as_the_bound_are_asked_for(phase: Phase) -> None:
    save_state("c", state("a"))
    append_messages("c", [{"role": "tool", "content": "t"}])
    many = [*(f"role{number}" for number in range(999)), "tool"]
    assert [found.message["content"] for found in list_messages("c", roles=many)] == ["t"]


def test_many_references_are_looked_for_and_none_is_removed(phase: Phase) -> None:
    save_state("c", state("a"))
    many: list[Any] = [range(1, 100_000), [f"key{number}" for number in range(100_000)]]
    for references in many:
        with pytest.raises(MessageNotFound):
            remove_messages("c", references)
    assert texts(load_state("c")) == ["a"]


def test_a_time_at_the_limits_is_resumed_or_not() -> None:
    for zone in (UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))):
        assert should_resume_conversation(datetime.max.replace(tzinfo=zone))
        assert not should_resume_conversation(datetime.min.replace(tzinfo=zone))
    assert not should_resume_conversation(datetime.min)


def test_the_cursor_of_a_page_leads_on(phase: Phase) -> None:
    user = UserFactory()
    for name in ("a|b", "c", "d"):
        save_state(name, state(name), user)
    found, at = [], None
    while True:
        page = list_conversations(user, before=at, limit=1)
        found += [line.conversation_id for line in page]
        at = page.next
        if at is None:
            break
    assert found == ["d", "c", "a|b"]
    append_messages("c", messages("x"), user_id=user)
    assert list_conversations(user, limit=1).conversations[0].conversation_id == "c"
