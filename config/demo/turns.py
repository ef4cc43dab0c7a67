"""Conversations as turns: an assistant loads, adds and saves, turn after turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model

from conversations import formats
from conversations.content.document import DEFAULTS, MESSAGES, Document
from conversations.storage import load_state, save_state

Message = Any
Turn = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to play, turn by turn."""

    id: str
    owner: Any
    document: Document
    turns: tuple[Turn, ...]

    def state_after(self, played: int) -> dict[str, Any]:
        """Return the state, as `to_dict()` gives it, after so many turns."""
        messages = [message for turn in self.turns[:played] for message in turn]
        last = self.turns[played - 1] if played else ()
        known = self.document.to_dict()
        return {
            **known,
            "user_input": _user_input(last),
            "step_count": played,
            "memory_context": self._context(played),
            MESSAGES: messages,
        }

    def _context(self, played: int) -> list[Any]:
        """Return the memory after so many turns: one more item a turn, all after the last turn."""
        return self.document.items[: played if played < len(self.turns) else None]

    def play(self, number: int) -> None:
        """Load the conversation, add turn `number` (from 0), and save it."""
        state = load_state(self.id, user_id=self.owner)
        self.add(state, number)
        save_state(self.id, state, user_id=self.owner)

    def add(self, state: Any, number: int) -> None:
        """Change a loaded state as turn `number` (from 0) does."""
        turn, after = self.turns[number], self.state_after(number + 1)
        state.conversation_history = [*state.conversation_history, *turn]
        state.memory_context = [
            *state.memory_context,
            *after["memory_context"][len(state.memory_context) :],
        ]
        state.user_input, state.step_count = after["user_input"], after["step_count"]
        for name in ("history", "focus", "last_tool_result"):
            setattr(state, name, after[name])
        state.extra = {name: value for name, value in after.items() if name not in DEFAULTS}


def _user_input(turn: Iterable[Message]) -> str:
    for message in turn:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and message.get("role") == "user":
            return content
    return ""


def turns_of(messages: Iterable[Message]) -> tuple[Turn, ...]:
    """Return messages as turns: each begins with a user's message, the first with all before it."""
    turns: list[list[Message]] = [[]]
    for message in messages:
        if _role(message) == "user" and any(_role(earlier) != "system" for earlier in turns[-1]):
            turns.append([])
        turns[-1].append(message)
    return tuple(tuple(turn) for turn in turns if turn)


def _role(message: Message) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def bounded(turns: Sequence[Turn], most: int) -> tuple[Turn, ...]:
    """Return at most so many turns; the earliest ones become one, which is saved at once.

    Legacy writes the whole conversation each turn: 1,200 turns of one conversation are 700 MB.
    """
    merged = max(len(turns) - most + 1, 1)
    first = tuple(message for turn in turns[:merged] for message in turn)
    return (first, *turns[merged:])


def conversations_of(
    found: Iterable[formats.Conversation], *, prefix: str, most_turns: int
) -> list[Conversation]:
    """Return conversations to play, each with a user of the name in the conversation.

    Conversations without a message are left out. A repeated id gets a number.
    """
    made = []
    seen: Counter[str] = Counter()
    for each in found:
        turns = turns_of(each.state.conversation_history)
        if not turns:
            continue
        seen[each.conversation_id] += 1
        again = seen[each.conversation_id]
        name = each.conversation_id if again == 1 else f"{each.conversation_id}#{again}"
        made.append(
            Conversation(
                id=prefix + name,
                owner=_owner(each.user or "demo-user"),
                document=Document.from_dict(each.state.to_dict()),
                turns=bounded(turns, most_turns),
            )
        )
    return made


def _owner(name: str) -> Any:
    model = get_user_model()
    longest = getattr(model._meta.get_field(model.USERNAME_FIELD), "max_length", None)
    user, _ = model._base_manager.get_or_create(
        **{model.USERNAME_FIELD: name[:longest]}, defaults={"password": "!"}
    )
    return user.pk
