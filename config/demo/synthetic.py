"""Synthetic conversations: many turns, tool calls, several languages; the same for a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

from config.demo.phrases import LANGUAGES, Language
from conversations.formats import Conversation
from conversations.state import AgentState

SEED = 20
CONVERSATIONS = 40
USERS = 9
FEWEST_TURNS, MOST_TURNS = 20, 200
# A third of the conversations have more than 40 turns, an eighth more than 100.
LENGTHS_EXPONENT = 3
HOURS = ("8:30", "11:15", "14:00", "16:45")
TOOLS = ("check_stock", "quote", "book_slot")


def conversations(count: int = CONVERSATIONS, *, seed: int = SEED) -> Iterator[Conversation]:
    """Yield synthetic conversations of 20 to 200 turns: most are short, a few are long."""
    for number in range(count):
        random = Random(f"{seed}:{number}")
        share = (number / max(count - 1, 1)) ** LENGTHS_EXPONENT
        turns = round(FEWEST_TURNS * math.exp(share * math.log(MOST_TURNS / FEWEST_TURNS)))
        language = LANGUAGES[number % len(LANGUAGES)]
        messages: list[Any] = [_system(language)]
        for turn in range(turns):
            # About every seventh turn is in a random language.
            spoken = random.choice(LANGUAGES) if random.random() < 0.15 else language
            messages += _turn(random, spoken, number=number, turn=turn)
        yield Conversation(
            conversation_id=f"synthetic-{language.code}-{number + 1:03}",
            user=f"synthetic-user-{number % USERS + 1}",
            state=AgentState(
                memory_context=list(_context(random, language)),
                conversation_history=messages,
                extra={
                    "source": "synthetic",
                    "metadata": {"language": language.code, "seed": seed},
                },
            ),
        )


def _system(language: Language) -> dict[str, Any]:
    return {
        "role": "system",
        "content": "You answer for a bicycle workshop. Look things up with the tools before you"
        f" promise anything. The customer's language is {language.code!r}.",
    }


def _said(random: Random, sentences: tuple[str, ...], language: Language) -> str:
    return random.choice(sentences).format(
        part=random.choice(language.parts),
        day=random.choice(language.days),
        hour=random.choice(HOURS),
        price=f"{random.randint(6, 140)},{random.randint(0, 99):02} €",
        count=random.randint(1, 12),
    )


def _turn(random: Random, language: Language, *, number: int, turn: int) -> list[dict[str, Any]]:
    question: Any = _said(random, language.questions, language)
    if random.random() < 0.05:
        question = [{"type": "text", "text": question}, {"type": "text", "text": "🚲 ☔"}]
    messages = [{"role": "user", "content": question}]
    for step in range(random.choice((0, 0, 1, 1, 2))):
        messages += _tool_use(random, language, call=f"call_{number}_{turn}_{step}")
    answer = " ".join(
        _said(random, language.answers, language) for _ in range(random.randint(1, 3))
    )
    return [*messages, {"role": "assistant", "content": answer}]


def _tool_use(random: Random, language: Language, *, call: str) -> list[dict[str, Any]]:
    """Return an assistant's call, or two at once, and the answers of the tools."""
    messages: list[dict[str, Any]] = []
    calls, answers = [], []
    for place in range(2 if random.random() < 0.1 else 1):
        tool, part = random.choice(TOOLS), random.choice(language.parts)
        arguments = json.dumps({"part": part, "day": random.choice(language.days)})
        function = {"name": tool, "arguments": arguments}
        calls.append({"id": f"{call}_{place}", "type": "function", "function": function})
        success = random.random() > 0.08
        result = {"part": part, "stock": random.randint(0, 12), "price": random.randint(6, 140)}
        shown = json.dumps(result, ensure_ascii=False) if success else "error: the shelf is locked"
        answers.append(
            {
                "role": "tool",
                "tool_call_id": f"{call}_{place}",
                "tool_name": tool,
                "tool_success": success,
                "content": shown,
            }
        )
    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
    return messages + answers


def _context(random: Random, language: Language) -> Iterator[dict[str, Any]]:
    for _ in range(random.randint(2, 8)):
        yield {
            "content": _said(random, language.questions, language),
            "source": random.choice(("profile", "earlier conversation")),
            "context_type": random.choice(("preference", "fact")),
            "relevance_score": round(random.random(), 3),
            "focus_area": "workshop",
        }
