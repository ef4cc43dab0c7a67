"""Every awkward value that JSON can carry: what databases and careless codecs change."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from conversations.content.document import DEFAULTS
from conversations.state import AgentState

AWKWARD_TEXTS = [
    "",
    "\x00",
    "a\x00b\\",
    "\ud800",
    "\udfff tail",
    "\ud83d\ude00",
    "\\u0000",
    "back\\slash",
    "ﷺ עברית العربية",
    "日本語\r\n",
    "🤷🏽‍♀️",
    "\ufeff\u200b",
    "x" * 5000,
]
AWKWARD_NUMBERS = [
    0,
    -0.0,
    0.0,
    1,
    1.0,
    1e22,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**53 + 1,
    2**63,
    -(2**200),
]
TIMES = ["2026-02-30T00:00:00", "9999-12-31T23:59:59-05:00", "2026-01-02T03:04:05+02:00", "soon"]

# Keys that careless code takes for one another, or for an index.
AWKWARD_KEYS = ["", "0", "00", "1", "1.0", "true", "null", "a", "A", "a ", "å", "a\u030a", "$ref"]
# What a container may add to the deepest message that MAX_DEPTH accepts.
DEEPEST = 390

texts = st.sampled_from(AWKWARD_TEXTS) | st.text(st.characters(exclude_categories=()), max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(AWKWARD_NUMBERS)
    | st.integers()
    | st.floats()
    | texts
)
keys = st.sampled_from(AWKWARD_KEYS) | texts


def nested(depth: int, inner: Any, *, mapping: bool) -> Any:
    """Return a value inside so many lists or mappings."""
    for _ in range(depth):
        inner = {"": inner} if mapping else [inner]
    return inner


deep = st.builds(nested, st.integers(50, DEEPEST), scalars, mapping=st.booleans())
values = (
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )
    | deep
)
# What json.dumps takes and gives back otherwise: tuples, and keys that are no strings.
inexact = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.none() | st.booleans() | st.integers() | texts, inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE_KEYS = [
    "role",
    "content",
    "message_type",
    "tool_name",
    "tool_success",
    "tool_call_id",
    "tool_calls",
    "name",
    "timestamp",
    "id",
]
ITEM_KEYS = [
    "content",
    "source",
    "relevance_score",
    "context_type",
    "role",
    "original_role",
    "focus_area",
    "preference_type",
    "timestamp",
]
parts = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}) | values, max_size=3
)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": texts, "arguments": st.just('{"b": 1.0, "a":  2}') | texts}
            ),
        }
    ),
    max_size=3,
)


def mappings(known: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with known keys of likely and of odd types, in any order, and unknown ones."""
    likely = {
        "content": texts | parts | st.none(),
        "role": st.sampled_from(["user", "assistant", "tool", "system"]) | texts,
        "tool_calls": calls,
        "tool_success": st.booleans(),
        "relevance_score": st.floats(0, 1) | st.sampled_from([0, 1, -0.0, True, 2.5]),
        "timestamp": st.sampled_from(TIMES),
    }
    pair = st.sampled_from(known).flatmap(
        lambda key: st.tuples(st.just(key), likely.get(key, texts) | values)
    )
    return st.lists(pair | st.tuples(keys, values), max_size=8).map(dict)


@st.composite
def states(draw: st.DrawFn) -> AgentState:
    """States with everything awkward in every place."""
    return AgentState(
        user_input=draw(texts),
        memory_context=draw(st.lists(mappings(ITEM_KEYS) | values, max_size=4)),
        history=draw(st.lists(values, max_size=3)),
        step_count=draw(st.integers(0, 5) | st.integers()),
        focus=draw(st.lists(texts, max_size=2)),
        conversation_history=draw(st.lists(mappings(MESSAGE_KEYS) | values, max_size=6)),
        last_tool_result=draw(values),
        extra=draw(
            st.dictionaries(
                keys.filter(lambda name: name not in DEFAULTS and name != "_baseline"),
                values,
                max_size=3,
            )
        ),
    )
