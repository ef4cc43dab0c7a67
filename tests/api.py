"""Every public function: its signature, a call of it, and what comes of that by whose it is.

A call takes an API, a conversation's id and a user. An API is `conversations.storage`, or anything
with its functions. A name says the function, and behind a comma the way it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from conversations import storage
from tests.support.factories import message, messages, state, texts

Call = Callable[[Any, Any, Any], Any]

# Name and signature: a changed line here is a change of the API.
FUNCTIONS = {
    "append_messages": "(conversation_id, messages, *, user_id=None, keys=None, create=False)",
    "claim_conversation": "(conversation_id, user_id)",
    "clear_conversation": "(conversation_id, user_id=None)",
    "conversation_exists": "(conversation_id, *, user_id=None)",
    "create_new_conversation": "(user_id=None)",
    "delete_conversation": "(conversation_id, user_id=None)",
    "fork_conversation": "(conversation_id, at=None, *, user_id=None, whole_turns=True)",
    "get_conversation_id": "(user_id)",
    "get_conversation_timestamp": "(user_id, conversation_id)",
    "list_conversations": "(user_id, *, before=None, limit=50)",
    "list_messages": (
        "(conversation_id, *, user_id=None, before=None, after=None, limit=50, roles=None,"
        " tool_name=None, include_superseded=False, whole_turns=False)"
    ),
    "load_state": (
        "(conversation_id, context_quality_threshold=None, *, user_id=None, max_messages=None,"
        " max_context_items=None, whole_turns=True, state_class=None,"
        " missing='empty')"
    ),
    "redact_message": (
        "(conversation_id, key_or_sequence, *, replacement='[redacted]', user_id=None)"
    ),
    "remove_messages": "(conversation_id, keys_or_sequences=None, *, last=None, user_id=None)",
    "replace_message": "(conversation_id, key_or_sequence, message, *, user_id=None)",
    "restore_message": "(conversation_id, key_or_sequence, *, revision=None, user_id=None)",
    "save_state": "(conversation_id, state, user_id=None)",
    "should_resume_conversation": "(last_timestamp)",
    "update_state_partial": "(conversation_id, updates, user_id=None)",
}

# Raise ConversationNotFound for what is missing, foreign or deleted.
REFUSING: dict[str, Call] = {
    "append_messages": lambda api, c, user: api.append_messages(c, messages("x"), user_id=user),
    "append_messages, keys": lambda api, c, user: api.append_messages(
        c, messages("x"), user_id=user, keys=["k"]
    ),
    "update_state_partial": lambda api, c, user: api.update_state_partial(
        c, {"step_count": 9}, user
    ),
    "replace_message": lambda api, c, user: api.replace_message(c, 1, message("x"), user_id=user),
    "remove_messages": lambda api, c, user: api.remove_messages(c, last=1, user_id=user),
    "restore_message": lambda api, c, user: api.restore_message(c, 1, user_id=user),
    "redact_message": lambda api, c, user: api.redact_message(c, 1, user_id=user),
    "list_messages": lambda api, c, user: api.list_messages(c, user_id=user),
    "load_state, missing": lambda api, c, user: api.load_state(c, user_id=user, missing="raise"),
    "clear_conversation": lambda api, c, user: api.clear_conversation(c, user),
    "fork_conversation": lambda api, c, user: api.fork_conversation(c, user_id=user),
}
# Name a conversation; the others do not.
CALLS: dict[str, Call] = {
    **REFUSING,
    "append_messages, create": lambda api, c, user: api.append_messages(
        c, messages("x"), user_id=user, create=True
    ),
    "save_state": lambda api, c, user: api.save_state(c, state("x"), user),
    "load_state": lambda api, c, user: api.load_state(c, user_id=user),
    "load_state, a part": lambda api, c, user: api.load_state(c, 0.5, user_id=user, max_messages=1),
    "conversation_exists": lambda api, c, user: api.conversation_exists(c, user_id=user),
    "get_conversation_timestamp": lambda api, c, user: api.get_conversation_timestamp(user, c),
    "claim_conversation": lambda api, c, user: api.claim_conversation(c, user),
    "delete_conversation": lambda api, c, user: api.delete_conversation(c, user),
}
OF_USERS: dict[str, Call] = {
    "create_new_conversation": lambda api, c, user: api.create_new_conversation(user),
    "list_conversations": lambda api, c, user: api.list_conversations(user),
    "get_conversation_id": lambda api, c, user: api.get_conversation_id(user),
}
EVERYTHING = {**CALLS, **OF_USERS}
# Asks no store.
PURE = {"should_resume_conversation"}
_NEED_A_USER = {"claim_conversation", "get_conversation_id"}


def function_of(name: str) -> str:
    """Return which function a call is of."""
    return name.split(",")[0]


def unasked(conversation_id: str = "c", *, user: Any = 1) -> dict[str, Callable[[], Any]]:
    """Return every call on a conversation, for no user; for `user` where one is needed."""
    return {
        name: partial(call, storage, conversation_id, user if name in _NEED_A_USER else None)
        for name, call in EVERYTHING.items()
    }


# Rights

SECRET = "said in confidence"
NOT_FOUND, DELETED = "ConversationNotFound", "ConversationDeleted"


@dataclass(frozen=True)
class Row:
    """What comes of a function of `tests.api`, by kind of conversation.

    `other` holds for all kinds that are not named. `given` makes of a result what is compared.
    """

    mine: Any
    other: Any
    nobodys: Any = None
    missing: Any = None
    deleted: Any = None
    given: Callable[[Any], Any] = lambda result: result
    # Whether it writes: then a caller who sees all is told of a deletion.
    tells: bool = True

    def expected(self, kind: str) -> Any:
        if kind == "mine":
            return self.mine
        named = getattr(self, kind, None)
        return self.other if named is None else named

    def seen(self, kind: str) -> Any:
        """Return what a caller gets who sees every conversation."""
        if kind == "deleted" and self.other == NOT_FOUND:
            return DELETED if self.tells else NOT_FOUND
        return self.mine if kind in ("mine", "foreign", "nobodys") else self.expected(kind)


def saved(result: Any) -> str:
    assert result["success"] is True
    return "saved"


def said(state: Any) -> list[str]:
    return texts(state)


WRITES = Row("saved", NOT_FOUND, given=saved)
CREATES = Row("saved", NOT_FOUND, missing="saved", deleted=DELETED, given=saved)
ROWS: dict[str, Row] = {
    "append_messages": WRITES,
    "append_messages, keys": WRITES,
    "append_messages, create": CREATES,
    "save_state": CREATES,
    "update_state_partial": WRITES,
    "replace_message": WRITES,
    "remove_messages": Row(messages(SECRET), NOT_FOUND),
    # What stands there was not removed, which only its owner is told.
    "restore_message": Row("MessageNotFound", NOT_FOUND),
    "redact_message": Row(1, NOT_FOUND),
    "list_messages": Row(
        messages(SECRET),
        NOT_FOUND,
        given=lambda page: [found.message for found in page],
        tells=False,
    ),
    "load_state": Row([SECRET], [], given=said),
    "load_state, a part": Row([SECRET], [], given=said),
    "load_state, missing": Row([SECRET], NOT_FOUND, given=said, tells=False),
    "conversation_exists": Row(True, False),
    "get_conversation_timestamp": Row(True, False, given=lambda moment: moment is not None),
    "clear_conversation": WRITES,
    "fork_conversation": Row(36, NOT_FOUND, given=len),
    "delete_conversation": Row(True, False),
}
