"""Uses of the public API that mypy must refuse: a line whose error is lost fails its check.

tests/storage/test_typing.py calls each function, too: at run time nothing is written either.
"""

from __future__ import annotations

from django.contrib.auth.models import AnonymousUser, Group

from conversations import aio, storage
from conversations.state import AgentState


class NoState:
    """A class that `load_state` cannot make."""


# Refused before any SQL


def a_text_is_saved_as_a_state() -> None:
    storage.save_state("c", "text", 1)  # type: ignore[arg-type]


def a_mapping_is_saved_as_a_state() -> None:
    storage.save_state("c", {"user_input": "hi"}, 1)  # type: ignore[arg-type]


def a_class_is_saved_as_a_state() -> None:
    storage.save_state("c", AgentState, 1)  # type: ignore[arg-type]


def a_state_has_a_misspelt_field() -> None:
    state = AgentState()
    state.conversation_histry = [{"role": "user"}]  # type: ignore[attr-defined]
    storage.save_state("c", state, 1)


def a_misspelt_field_is_read() -> None:
    AgentState().conversation_histry.append({})  # type: ignore[attr-defined]


def a_field_has_another_type() -> None:
    storage.save_state("c", AgentState(step_count="1"))  # type: ignore[arg-type]


def a_user_is_a_fraction() -> None:
    storage.load_state("c", user_id=3.5)  # type: ignore[arg-type]


def a_user_is_an_anonymous_visitor() -> None:
    storage.load_state("c", user_id=AnonymousUser())  # type: ignore[arg-type]


def a_user_is_a_group() -> None:
    storage.load_state("c", user_id=Group(pk=1))  # type: ignore[arg-type]


def a_claim_is_for_nobody() -> None:
    storage.claim_conversation("c", None)  # type: ignore[arg-type]


def an_id_is_a_number() -> None:
    storage.load_state(5)  # type: ignore[arg-type]


def keys_are_one_text() -> None:
    storage.append_messages("c", [{"role": "user"}], keys="k1")  # type: ignore[arg-type]


def keys_have_no_order() -> None:
    storage.append_messages("c", [{}, {}], keys={"a", "b"})  # type: ignore[arg-type]


def messages_are_one_message() -> None:
    message = {"role": "user", "content": "hi"}
    storage.append_messages("c", message)  # type: ignore[arg-type]


def messages_are_a_text() -> None:
    storage.append_messages("c", "hi")  # type: ignore[arg-type]


def updates_are_a_list() -> None:
    storage.update_state_partial("c", [("step_count", 1)])  # type: ignore[arg-type]


def a_limit_is_a_text() -> None:
    storage.load_state("c", max_messages="3")  # type: ignore[arg-type]


def what_is_missing_is_another_word() -> None:
    storage.load_state("c", missing="Raise")  # type: ignore[arg-type]


def a_cursor_is_a_number() -> None:
    storage.list_conversations(1, before=5)  # type: ignore[arg-type]


def a_timestamp_is_a_text() -> None:
    storage.should_resume_conversation("2026-01-02")  # type: ignore[arg-type]


def a_class_makes_no_state() -> None:
    storage.load_state("c", state_class=NoState)  # type: ignore[type-var]


def an_instance_is_given_for_its_class() -> None:
    storage.load_state("c", state_class=AgentState())  # type: ignore[arg-type]


async def a_coroutine_takes_a_text_for_a_state() -> None:
    await aio.save_state("c", "text", 1)  # type: ignore[arg-type]


async def a_coroutine_takes_one_text_for_keys() -> None:
    await storage.aappend_messages("c", [{}], keys="k1")  # type: ignore[arg-type]


async def a_coroutine_takes_a_fraction_for_a_user() -> None:
    await aio.load_state("c", user_id=3.5)  # type: ignore[arg-type]


# Found at run time by Python itself, after a load


def a_misspelt_field_is_loaded() -> None:
    storage.load_state("c", user_id=1).conversation_histry  # type: ignore[attr-defined]  # noqa: B018


async def a_coroutine_is_used_unawaited() -> None:
    aio.load_state("c", user_id=1).user_input  # type: ignore[attr-defined]  # noqa: B018
