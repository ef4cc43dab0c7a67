"""Uses of the public API that type checkers must take, and the types that they find."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypedDict, assert_type

from django.contrib.auth.models import AbstractBaseUser, User
from django.http import HttpRequest

from conversations import aio, storage
from conversations.state import AgentState, LoadInfo, SaveResult
from conversations.storage import ANY_OWNER, UserKey, UserRef


class ChatMessage(TypedDict):
    """A message as SDKs type them."""

    role: str
    content: str


@dataclass
class Ticket(AgentState):
    """A host's own state: a subclass with a field more."""

    ticket: str = ""
    tags: list[str] = field(default_factory=list)


class Plain:
    """A host's own state that shares nothing with ours."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data)

    def to_dict(self) -> Mapping[str, Any]:
        return self.data


def loading_gives_the_class_that_was_asked_for(user: User) -> None:
    assert_type(storage.load_state("c"), AgentState)
    assert_type(storage.load_state("c", 0.5, user_id=user, max_messages=3), AgentState)
    assert_type(storage.load_state("c", state_class=Ticket), Ticket)
    assert_type(storage.load_state("c", missing="raise"), AgentState)
    assert_type(storage.conversation_exists("c", user_id=user), bool)
    assert_type(storage.load_state("c", state_class=Ticket).tags, list[str])
    assert_type(storage.load_state(uuid.uuid4(), state_class=Plain).data, dict[str, Any])
    assert_type(storage.load_state("c").load_info, LoadInfo | None)


async def coroutines_have_the_same_types(user: User) -> None:
    assert_type(await storage.aload_state("c"), AgentState)
    assert_type(await aio.load_state("c", user_id=user), AgentState)
    assert_type(await aio.load_state("c", state_class=Ticket), Ticket)
    assert_type(await storage.aload_state("c", state_class=Plain), Plain)
    assert_type(await aio.save_state("c", AgentState(), user), SaveResult)
    assert_type(await aio.append_messages("c", [{"role": "user"}], keys=["k"]), SaveResult)
    assert_type(await aio.list_messages("c"), storage.MessagePage)
    assert_type(await aio.list_conversations(user), storage.ConversationPage)
    assert_type(await aio.get_conversation_id(user), str | None)
    assert_type(await aio.delete_conversation("c", user), bool)


def states_of_every_class_are_saved() -> None:
    assert_type(storage.save_state("c", AgentState()), SaveResult)
    storage.save_state("c", Ticket(ticket="T-1"))
    storage.save_state("c", Plain({}))


def users_are_named_by_any_form(
    request: HttpRequest, base: AbstractBaseUser, key: UserKey, owner: UserRef
) -> None:
    storage.load_state("c", user_id=base)
    for form in (1, "1", uuid.uuid4(), ANY_OWNER, None, key, owner):
        storage.load_state("c", user_id=form)
    storage.claim_conversation("c", key)
    if request.user.is_authenticated:
        storage.list_conversations(request.user)


def messages_are_mappings_of_any_kind(
    typed: list[ChatMessage], plain: list[dict[str, str]]
) -> None:
    storage.append_messages("c", typed)
    storage.append_messages("c", plain)
    storage.append_messages("c", ({"content": text} for text in "abc"))
    storage.replace_message("c", 1, typed[0])
    storage.update_state_partial("c", {"step_count": 2, "new_messages": typed})


def keys_are_texts_in_an_order(new: dict[str, ChatMessage], made: Iterator[str]) -> None:
    storage.append_messages("c", new.values(), keys=new.keys())
    storage.append_messages("c", [*new.values()], keys=[*new])
    storage.append_messages("c", [*new.values()], keys=("a", "b"))
    storage.append_messages("c", [*new.values()], keys=made)
    storage.append_messages("c", [*new.values()], keys=(str(number) for number in range(2)))


def pages_and_summaries_are_typed(user: User) -> None:
    page = storage.list_messages("c", user_id=user, roles=["user"], before=5)
    assert_type(page.first, int | None)
    assert_type([message.key for message in page], list[str | None])
    summaries = storage.list_conversations(user, before=None)
    assert_type([summary.updated_at for summary in summaries], list[datetime | None])
    storage.should_resume_conversation(storage.get_conversation_timestamp(user, "c"))
    assert_type(storage.remove_messages("c", ["k", 1]), list[Any])
