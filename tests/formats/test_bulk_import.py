"""Many lines imported at once: the same rows as one by one, and a few statements."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import IntegrityError, transaction

from conversations.exceptions import StorageUnavailable
from conversations.formats import (
    Owners,
    bulk_import as imports,
    export_lines,
    import_lines,
    import_records,
    ownership,
    read_records,
)
from conversations.models import ConversationState
from conversations.storage import (
    append_messages,
    delete_conversation,
    fork_conversation,
    load_state,
    save_state,
)
from flags import switches
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.bulk import (
    emptied,
    meanwhile,
    postgresql,
    statements,
    with_items,
    written_by_old_code,
)
from tests.support.factories import UserFactory, messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}


def test_an_import_at_once_gives_the_same_bytes_as_line_by_line() -> None:
    user = UserFactory()
    with forced_phase(Phase.NEW_ONLY):
        for number in range(7):
            name = f"c{number}"
            save_state(name, state(name, "b", memory_context=[{"content": number}]), user)
            append_messages(name, messages("later"), user_id=user, keys=["key"])
    lines = list(export_lines())
    for ahead in (1, 3, 100):
        emptied()
        assert [one.result for one in import_lines(lines, together=ahead)] == ["created"] * 7
        assert list(export_lines()) == lines
        assert [one.result for one in import_lines(lines, together=ahead)] == ["unchanged"] * 7


def test_an_import_at_once_tells_of_each_line_in_order(caplog: Any) -> None:
    caplog.set_level("INFO")
    with forced_phase(Phase.DUAL_WRITE):
        for name in ("here", "gone"):
            save_state(name, state("x"))
    written_by_old_code("old")
    lines = list(export_lines())
    delete_conversation("gone")
    with forced_phase(Phase.NEW_ONLY):
        append_messages("here", messages("other content"))
    new = [line.replace('"here"', f'"{name}"') for name in ("new", "newer") for line in lines[:1]]
    stranger = new[0].replace('"new"', '"foreign"').replace('"user": null', '"user": "4711"')
    found = list(import_lines([*lines, "{", new[0], stranger, *new], together=100))
    assert [(one.line, one.conversation_id, str(one.result)) for one in found] == [
        (1, "here", "refused"),
        (2, "gone", "deleted"),
        (3, "old", "unchanged"),
        (4, None, "invalid"),
        (5, "new", "created"),
        (6, "foreign", "refused"),
        (7, "new", "unchanged"),
        (8, "newer", "created"),
    ]
    assert "at once" not in caplog.text


def chats(*lines: Any) -> Iterator[Any]:
    encoded = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return read_records(io.BytesIO(encoded))


@pytest.mark.parametrize("fresh", [True, False])
def test_chats_are_imported_at_once_for_the_users_of_their_names(
    settings: Any, fresh: bool, caplog: Any
) -> None:
    if fresh:
        settings.CONVERSATIONS = {}
    caplog.set_level("INFO")
    user = UserFactory(username="ann")
    lines: list[Any] = [
        {"id": "hers", "user": "ann", "messages": messages("a")},
        {"id": "nobodys", "user": "nobody here", "messages": messages("b")},
        messages("c"),
    ]
    found = []
    for ahead in (1, 100):
        emptied()
        # Inside a caller's transaction as outside of one.
        with transaction.atomic():
            nobodys = Owners(ownerless=True)
            done = list(import_records(chats(*lines), together=ahead, owners=nobodys))
        rows = ConversationState.rows.order_by("conversation_id")
        found.append((done, list(rows.values_list("conversation_id", "user_id", "legacy_token"))))
    assert found[0] == found[1]
    assert [one.result for one in found[1][0]] == ["created"] * 3
    assert {name: owner for name, owner, _ in found[1][1]}.items() >= {
        ("hers", user.pk),
        ("nobodys", None),
    }
    assert "at once" not in caplog.text


def test_a_name_in_another_spelling_and_an_impossible_key_are_looked_at_by_themselves() -> None:
    UserFactory(username="ann")
    line = {"format": 1, "conversation_id": "c", "user": "no key", "forked_from": None}
    line |= {"created_at": None, "updated_at": None, "state": {}, "messages": []}
    lines = [
        line,
        {**line, "conversation_id": "d", "user": None},
        {**line, "conversation_id": "e", "user": None},
    ]
    assert [str(one.result) for one in import_records(chats(*lines), together=100)] == [
        "refused",
        "created",
        "created",
    ]
    names = [{"id": name, "user": "Ann", "messages": []} for name in "fg"]
    nobodys = Owners(ownerless=True)
    with mock.patch.object(ownership, "_keys_of", return_value={}):
        done = list(import_records(chats(*names), together=100, owners=nobodys))
    assert [str(one.result) for one in done] == ["created"] * 2
    assert ownership._keys_of({"ann", "Ann"}).keys() == {"ann"}


def test_a_failed_import_at_once_keeps_the_callers_transaction() -> None:
    lines = [{"id": name, "messages": messages(name)} for name in "ab"]
    with (
        mock.patch.object(imports, "create_all", mock.Mock(side_effect=IntegrityError)),
        transaction.atomic(),
    ):
        with forced_phase(Phase.NEW_ONLY):
            save_state("mine", state("x"))
        done = list(import_records(chats(*lines), together=100))
    assert [str(one.result) for one in done] == ["created"] * 2
    assert ConversationState.rows.count() == 3


def test_forks_are_joined_however_many_lines_are_read_ahead() -> None:
    with forced_phase(Phase.NEW_ONLY):
        for name in ("origin", "other", "another"):
            save_state(name, state("x"))
        fork = fork_conversation("origin")
    lines = {line.split('"')[5]: line for line in export_lines()}
    for order in (
        ["origin", "other", fork, "another"],
        [fork, "another", "origin", "other"],
        ["other", fork, "origin", "another"],
    ):
        for ahead in (1, 2, 100):
            emptied()
            list(import_lines([lines[name] for name in order], together=ahead))
            assert ConversationState.rows.get(conversation_id=fork).forked_from_id == (
                ConversationState.rows.get(conversation_id="origin").pk
            )


def test_an_import_takes_as_many_statements_for_four_as_for_forty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine forty take half a second, and the switches would be read again.
    monkeypatch.setattr(switches, "SNAPSHOT_SECONDS", 1e6)
    user, counts = UserFactory(), []
    for count in (4, 40):
        with forced_phase(Phase.NEW_ONLY):
            for number in range(count):
                save_state(f"{count}-{number}", with_items(str(number)), user)
            lines = list(export_lines())
            emptied()
            # Here as well: whether the switches are read again goes by the clock.
            counts.append(len(statements(lambda: list(import_lines(lines, together=100)))))  # noqa: B023
            emptied()
    assert counts[0] == counts[1] <= 14


def test_an_import_that_fails_at_once_is_tried_line_by_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with forced_phase(Phase.NEW_ONLY):
        for name in "abcd":
            save_state(name, state(name))
    lines = list(export_lines())
    emptied()
    monkeypatch.setattr(imports, "create_all", mock.Mock(side_effect=IntegrityError))
    assert [one.result for one in import_lines(lines, together=100)] == ["created"] * 4
    assert list(export_lines()) == lines


def test_inside_a_callers_transaction_that_is_lost_nothing_is_tried_again() -> None:
    with forced_phase(Phase.NEW_ONLY):
        for name in "ab":
            save_state(name, state(name))
    lines = list(export_lines())
    emptied()

    failing = mock.Mock(side_effect=IntegrityError)
    with (
        mock.patch.object(imports, "create_all", failing),
        mock.patch.object(imports, "lost", return_value=True),
        pytest.raises(StorageUnavailable),
        transaction.atomic(),
    ):
        list(import_lines(lines, together=100))
    assert not ConversationState.rows.exists()


@postgresql
def test_an_import_leaves_locked_conversations_for_the_end() -> None:
    with forced_phase(Phase.NEW_ONLY):
        for name in "abc":
            save_state(name, state(name))
    lines = list(export_lines())
    emptied()

    def create() -> None:
        with forced_phase(Phase.NEW_ONLY):
            save_state("b", state("live"))

    with meanwhile(create) as over:
        outcomes = import_lines(lines, together=100)
        # The others are written, although another session is creating one of them.
        assert next(outcomes).conversation_id == "a"
        assert set(ConversationState.rows.values_list("conversation_id", flat=True)) == {"a", "c"}
        over.set()
        assert [str(one.result) for one in outcomes] == ["refused", "created"]
    with forced_phase(Phase.NEW_ONLY):
        assert texts(load_state("b")) == ["live"]
