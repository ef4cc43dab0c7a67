"""What is saved and loaded: turns of conversations, from a file or made up from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from django.contrib.auth import get_user_model

from config.demo import synthetic
from config.demo.turns import Turn, turns_of
from conversations.formats import read_conversations

MOST_TURNS = 20
# A conversation of fewer turns says little about saving turn by turn.
FEWEST_TURNS = 4


@dataclass(frozen=True, slots=True)
class Corpus:
    """Conversations as turns, at most `MOST_TURNS` each, in the order of the seed."""

    name: str
    conversations: tuple[tuple[Turn, ...], ...]

    def played(self, rounds: int) -> Iterator[tuple[Turn, ...]]:
        """Yield a conversation for each round, over and over."""
        return islice(cycle(self.conversations), rounds)

    def messages(self, count: int) -> list[Any]:
        """Return so many messages, of one conversation after the other."""
        return list(islice(self._endless(), count))

    def turn(self, number: int) -> Turn:
        """Return a turn of two messages or more; the same for the same number."""
        turns = [t for one in self.conversations for t in one if len(t) > 1]
        return turns[number % len(turns)]

    def _endless(self) -> Iterator[Any]:
        for turns in cycle(self.conversations):
            for turn in turns:
                yield from turn


def corpus(data: Path | None, *, seed: int) -> Corpus:
    """Return what is measured on: a file's conversations, or synthetic ones.

    Raises: OSError, InvalidState; ValueError when no conversation has turns enough.
    """
    found = synthetic.conversations(seed=seed) if data is None else read_conversations(data)
    several = [turns_of(one.state.conversation_history) for one in found]
    chosen: list[Sequence[Turn]] = [turns for turns in several if len(turns) >= FEWEST_TURNS]
    if not chosen:
        raise ValueError(f"no conversation has {FEWEST_TURNS} turns.")
    Random(seed).shuffle(chosen)
    name = "synthetic conversations" if data is None else data.name
    return Corpus(name, tuple(tuple(turns[:MOST_TURNS]) for turns in chosen))


def new_owner(name: str = "bench") -> Any:
    """Create the user whose conversations are measured. Returns: the primary key."""
    model = get_user_model()
    return model._base_manager.create(**{model.USERNAME_FIELD: name}).pk


def texts_of(content: Any) -> list[str]:
    """Return the texts in the content of a message: itself, or those of its parts."""
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return [text for text in texts if isinstance(text, str)]


def said(message: Any) -> str:
    """Return all text of a message as it was put in; "" where it has none."""
    return "".join(texts_of(message.get("content"))) if isinstance(message, dict) else ""
