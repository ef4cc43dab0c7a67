"""Signals: each change that a public function commits is told once, and what failed is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from conversations import aio, storage
from conversations.models import ConversationState
from conversations.signals import (
    conversation_deleted,
    conversation_redacted,
    conversation_saved,
)
from flags.phases import Phase
from tests.support.factories import UserFactory, state

pytestmark = pytest.mark.django_db(transaction=True)

SIGNALS = {
    "saved": conversation_saved,
    "redacted": conversation_redacted,
    "deleted": conversation_deleted,
}


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What receivers of every signal were told, in order."""
    heard: list[Any] = []
    receivers = []
    for name, signal in SIGNALS.items():

        def receive(sender: Any, signal: Any, name: str = name, **arguments: Any) -> None:
            assert sender is ConversationState
            arguments.pop("revision", None)
            heard.append((name, *arguments.values()))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield heard
    for signal, receive in receivers:
        signal.disconnect(receive)


def test_each_change_is_told_once(phase: Phase, told: list[Any]) -> None:
    storage.save_state("c", state("a"))
    storage.append_messages("c", [{"role": "user", "content": "b", "key": "k"}], keys=["k"])
    loaded = storage.load_state("c")
    storage.save_state("c", loaded)
    storage.replace_message("c", "k", {"role": "user", "content": "B"})
    assert told == [("saved", "c"), ("saved", "c"), ("saved", "c")]
    del told[:]
    fork = storage.fork_conversation("c")
    storage.redact_message("c", "k")
    assert told == [("saved", fork), ("redacted", "c"), ("redacted", fork)]
    del told[:]
    assert storage.delete_conversation("c")
    assert not storage.delete_conversation("c")
    assert told == [("deleted", "c", "deleted")]


def test_nothing_is_told_before_the_commit_nor_of_what_was_undone(
    phase: Phase, told: list[Any]
) -> None:
    with transaction.atomic():
        storage.save_state("c", state("a"))
        assert told == []
    assert told == [("saved", "c")]
    with transaction.atomic():
        storage.delete_conversation("c")
        transaction.set_rollback(True)
    assert told == [("saved", "c")]


def test_a_deleted_user_tells_of_their_conversations(new_only: None, told: list[Any]) -> None:
    user = UserFactory()
    storage.save_state("c", state("a"), user)
    user.delete()
    assert told == [("saved", "c"), ("deleted", "c", "owner deleted")]


def test_a_save_is_told_with_its_revision(phase: Phase) -> None:
    told = []

    def receive(revision: int, **arguments: Any) -> None:
        told.append(revision)

    conversation_saved.connect(receive)
    try:
        revisions = [storage.save_state("c", state(text))["revision"] for text in ("a", "b")]
    finally:
        conversation_saved.disconnect(receive)
    assert told == revisions


def test_coroutines_tell_as_well(new_only: None, told: list[Any]) -> None:
    async_to_sync(aio.save_state)("c", state("a"))
    assert told == [("saved", "c")]


def test_a_receiver_that_fails_neither_fails_nor_undoes_a_save(
    new_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**arguments: Any) -> None:
        raise ValueError("out of order")

    caplog.set_level(logging.ERROR, "django.dispatch")
    conversation_saved.connect(fail)
    try:
        assert storage.save_state("c", state("a"))["success"]
    finally:
        conversation_saved.disconnect(fail)
    assert storage.conversation_exists("c")
    assert "out of order" in caplog.text


def test_without_autocommit_nothing_is_told(new_only: None, told: list[Any]) -> None:
    transaction.set_autocommit(False)
    try:
        storage.save_state("c", state("a"))
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert told == []
