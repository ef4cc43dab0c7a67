"""What messages and context items say in every provider's form, in lists and on pages."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from hypothesis import given, strategies as st

from conversations import storage
from conversations.admin import rendering
from conversations.admin.rendering import shown_item, shown_message
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.storage import StoredMessage
from flags.admin import text
from flags.admin.text import LONGEST_SHOWN, shown_json, shown_value
from flags.phases import Phase
from flags.switches import forced_phase
from memory.admin.words import beginning_of_json, spoken, words_of, words_of_columns
from memory.models import MemoryContextItem

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
SAYS: list[tuple[Any, str]] = [
    # Context items that keep their text under another key.
    ({"content": "a", "text": "b"}, "a"),
    ({"text": "a", "source": "s"}, "a"),
    ({"value": "a"}, "a"),
    ({"fact": "a", "relevance_score": 0.5}, "a"),
    ({"memory": "a", "id": "1"}, "a"),
    ({"content": "", "text": "a"}, "a"),
    ({"content": " \n", "fact": "a"}, "a"),
    ({"content": None, "memory": "a"}, "a"),
    ({"value": {"fact": "a", "at": 1}}, "a"),
    ({"value": {"city": "Oslo", "days": 3}}, "city: Oslo, days: 3"),
    ({"value": ["a", {"text": "b"}, 3]}, "a\nb\n3"),
    ({"value": 0}, "0"),
    ({"value": False}, "false"),
    ({"value": 1.5}, "1.5"),
    ({"note": "a", "source": "s"}, "note: a"),
    ({"deep": {"deeper": {"fact": "a"}}}, "deep: deeper: a"),
    # Messages of tools.
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, 'weather({"a":1})'),
    ({"role": "assistant", "content": "\n\n", "tool_calls": [CALL]}, 'weather({"a":1})'),
    ({"content": "", "tool_calls": [CALL, CALL]}, 'weather({"a":1})\nweather({"a":1})'),
    ({"content": "look", "tool_calls": [CALL]}, "look"),
    ({"name": "find", "arguments": '{"place": "\\u0437\\u0430"}'}, 'find({"place": "за"})'),
    ({"name": "find", "arguments": '{"place": "\\u0437\\u04'}, 'find({"place": "з"})'),
    ({"function_call": {"name": "find", "arguments": "{}"}}, "find({})"),
    ({"tool_calls": [{"name": "find", "args": {"n": [1, None]}}]}, 'find({"n": [1, null]})'),
    ({"tool_calls": [{"function": {"name": "now"}}]}, "now()"),
    ({"tool_calls": "odd", "note": "a"}, "tool_calls: odd, note: a"),
    ({"type": "function_call", "name": "find", "arguments": "{}", "call_id": "c"}, "find({})"),
    ({"type": "function_call_output", "call_id": "c", "output": "done"}, "done"),
    ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]}, "so"),
    ({"role": "user", "content": [{"type": "tool_use", "name": "f", "input": {}}]}, "f({})"),
    (
        {"content": [{"type": "tool_result", "content": [{"type": "text", "text": "a"}]}]},
        "a",
    ),
    ({"content": [{"type": "tool_result", "content": "a"}]}, "a"),
    ({"role": "assistant", "content": None, "refusal": "no"}, "no"),
    ({"role": "user", "parts": [{"type": "text", "text": "a"}]}, "a"),
    (
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
        "functionCall: f({})",
    ),
    ({"content": [{"toolUse": {"name": "f", "input": {"n": 1}}}]}, 'toolUse: f({"n": 1})'),
    ({"type": "human", "data": {"content": "a"}}, "a"),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        "image_url: url: u",
    ),
    # What says nothing.
    ({"role": "user", "content": ""}, ""),
    ({"role": "user", "content": []}, ""),
    ({"type": "step-start"}, ""),
    ({}, ""),
    ([], ""),
    (None, ""),
    ("", ""),
    ("a", "a"),
    (5, "5"),
    ([["a"], []], "a"),
]


@pytest.mark.parametrize(("value", "words"), SAYS)
def test_the_words_of_a_value_are_read_in_every_form(value: Any, words: str) -> None:
    assert words_of(value) == words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "content",
                    "text",
                    "value",
                    "tool_calls",
                    "function_call",
                    "function",
                    "name",
                    "arguments",
                    "role",
                    "note",
                ]
            )
            | st.text(),
            inner,
        )
    ),
    max_leaves=20,
)


@given(JSON, st.integers(1, 50))
def test_any_json_value_can_be_read_within_the_limit(value: Any, limit: int) -> None:
    assert len(words_of(value, limit=limit)) <= limit
    assert len(spoken(value, limit=limit)) <= limit


@given(JSON, st.data())
def test_the_beginning_of_json_holds_only_whole_values(value: Any, data: st.DataObject) -> None:
    whole = json.dumps(value)
    cut = data.draw(st.integers(0, len(whole)))
    assert beginning_of_json(whole) == value
    found = beginning_of_json(whole[:cut])
    if isinstance(value, list) and found is not None:
        assert isinstance(found, list)
        assert found[:-1] == value[: len(found[:-1])]
    if isinstance(value, dict) and found is not None:
        assert list(found) == list(value)[: len(found)]


@pytest.mark.parametrize(
    ("cut", "held"),
    [
        ("", None),
        ("{", {}),
        ('{"values": {"text": "lon', {"values": {"text": "lon"}}),
        ('{"values": {"text": "a\\', {"values": {"text": "a"}}),
        ('{"values": {"text": "a\\u00', {"values": {"text": "a"}}),
        ('{"values": {"text": "a\\\\', {"values": {"text": "a\\"}}),
        ('{"values": {"te', {"values": {}}),
        ('{"values": {"text":', {"values": {}}),
        ('{"values": {"text": "a", "n": 12', {"values": {"text": "a"}}),
        ('[1, 2, {"a": [3, tru', [1, 2, {"a": [3]}]),
        ("]", None),
        ('"', ""),
        ("[" * 500_000, None),
    ],
)
def test_json_that_is_cut_off_is_read_as_far_as_it_goes(cut: str, held: Any) -> None:
    assert beginning_of_json(cut) == held


def test_a_row_shows_the_words_of_its_other_columns() -> None:
    calls = json.dumps([CALL | {"pad": "x" * 5_000}])[:2_000]
    assert words_of_columns({"tool_calls": calls, "extra": ""}) == 'weather({"a":1})'
    extra = json.dumps({"values": {"text": "y" * 5_000}})[:2_000]
    assert words_of_columns({"extra": extra}, limit=10) == "y" * 10
    assert words_of_columns({"extra": json.dumps({"raw": ["a"]})}) == "a"
    assert words_of_columns({"extra": None, "tool_calls": None}) == ""


# In lists and on pages

MESSAGES: list[Any] = [message for message, _ in SAYS if isinstance(message, dict | str)]


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("operator"))
    return client


def changelist(model: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def excerpts(operator: Client, model: Any) -> Iterator[tuple[Any, str | None]]:
    shown = operator.get(changelist(model)).context["cl"]
    for row in sorted(shown.result_list, key=lambda each: each.sequence):
        yield row, shown.model_admin.excerpt(row)


@pytest.mark.django_db
def test_lists_and_pages_show_no_blank_row(operator: Client) -> None:
    with forced_phase(Phase.NEW_ONLY):
        storage.save_state("c", AgentState(memory_context=MESSAGES, conversation_history=MESSAGES))
    for model in (ConversationMessage, MemoryContextItem):
        shown = [excerpt for _, excerpt in excerpts(operator, model)]
        for message, excerpt in zip(MESSAGES, shown, strict=True):
            words = words_of(message)
            if not words:
                assert excerpt is None
            else:
                assert words[:10].replace('"', "&quot;") in str(excerpt), message
    row = ConversationMessage.objects.get(sequence=1 + MESSAGES.index(SAYS[16][0]))
    name = "admin:conversations_conversationmessage_change"
    page = operator.get(reverse(name, args=[row.pk])).content.decode()
    assert ">weather({&quot;a&quot;:1})</pre>" in page
    item = MemoryContextItem.objects.get(sequence=1 + MESSAGES.index({"value": "a"}))
    name = "admin:memory_memorycontextitem_change"
    assert ">a</pre>" in operator.get(reverse(name, args=[item.pk])).content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("phase", [Phase.NEW_ONLY, Phase.LEGACY])
def test_a_transcript_and_the_context_say_it_too(operator: Client, phase: Phase) -> None:
    messages = [
        {"type": "function_call", "name": "lookup", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "a result of five"},
        {"role": "user", "content": [{"type": "tool_result", "content": "an answer within"}]},
        {"role": "assistant", "text": "under another key"},
    ]
    items = [{"fact": "a fact of an item"}, {"note": "a note of an item"}]
    with forced_phase(phase):
        storage.save_state("c", AgentState(memory_context=items, conversation_history=messages))
        row = ConversationState.objects.filter(conversation_id="c").first()
        address = reverse("admin:conversations_conversationstate_unmoved") + "?id=c"
        if row is not None:
            address = reverse("admin:conversations_conversationstate_change", args=[row.pk]) + "?"
        page = operator.get(address).content.decode()
        context = operator.get(f"{address}&tab=context").content.decode()
    for said in ("lookup({})", "a result of five", "an answer within", "under another key"):
        assert f">{said}</pre>" in page
    assert ">a fact of an item</pre>" in context
    assert ">note: a note of an item</pre>" in context


@pytest.mark.parametrize(
    ("item", "content", "rest"),
    [
        ({"content": "a", "note": 1}, "a", '{\n  "note": 1\n}'),
        ({"text": "a"}, "a", ""),
        ({"content": None, "fact": "a", "n": 1}, "a", '{\n  "n": 1\n}'),
        ({"value": {"fact": "a"}}, "a", '{\n  "value": {\n    "fact": "a"\n  }\n}'),
        ({"content": {"a": 1}}, '{\n  "a": 1\n}', ""),
        ({}, "", ""),
    ],
)
def test_an_item_is_shown_by_what_it_says(item: Any, content: str, rest: str) -> None:
    laid_out = shown_item(item, score=None)
    assert (laid_out.content.text, laid_out.rest.text) == (content, rest)


# Layout stops at its limit


def deep(size: int) -> str:
    """Return valid JSON of that size whose every line would be indented by 900 levels."""
    return "[" * 900 + ",".join(["1"] * ((size - 1_800) // 2)) + "]" * 900


def hostile(size: int) -> list[Any]:
    """Return JSON values of about that size that unfold when they are laid out."""
    entries = size // 10
    return [
        deep(size),
        json.dumps([[]] * entries),
        json.dumps([{str(n): n} for n in range(entries // 2)]),
        "[" * size,
        json.dumps("\x00" * (size // 6)),
        json.dumps([f"{n}" for n in range(entries)]),
    ]


def peak_of(work: Any) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("which", range(6))
def test_a_nested_tool_result_of_200_kb_costs_no_more_than_its_parse(which: int) -> None:
    """The whole layout of the first took 358 MB, for the 20,000 characters that are shown."""
    json_text = hostile(195_000)[which]
    message = {"role": "tool", "content": json_text}
    assert peak_of(lambda: shown_message(StoredMessage(1, None, message, 1))) < 25_000_000
    assert len(shown_json(json_text).text) <= 6 * LONGEST_SHOWN


def test_a_value_is_laid_out_to_the_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens are looked at for a value of 2 MB as for one of 20 MB, and no memory more."""
    looked: list[int] = []
    for size in (200_000, 2_000_000):
        values: list[Any] = [[[1]] * size, {str(n): [n] for n in range(size // 10)}, ["x" * size]]
        for value in values:
            taken = 0
            tokens = text._tokens

            def counted(*arguments: Any, tokens: Any = tokens) -> Iterator[str]:
                nonlocal taken
                for token in tokens(*arguments):
                    taken += 1
                    yield token

            with monkeypatch.context() as patched:
                patched.setattr(text, "_tokens", counted)
                cut = shown_value(value)
            assert len(cut.text) == LONGEST_SHOWN
            assert cut.more == "… and more"
            looked.append(taken)
            assert peak_of(lambda value=value: shown_value(value)) < 3_000_000  # type: ignore[misc]
    assert looked[:3] == looked[3:]


def test_a_cut_text_says_how_much_is_missing() -> None:
    assert shown_json("[1, 2]").more == ""
    cut = shown_json(json.dumps(["x"] * 30_000))
    assert cut.is_json
    assert cut.more.endswith(" more characters")
    assert shown_value({"a": 1}).more == ""


def test_a_message_of_many_parts_shows_the_first_of_them() -> None:
    parts = [{"type": "text", "text": "y" * 5_000} for _ in range(10_000)]
    shown = shown_message(StoredMessage(1, None, {"role": "user", "content": parts}, 1))
    assert len(shown.blocks) == rendering.MOST_BLOCKS + 1
    assert shown.blocks[-1].title == "More parts"
    texts = [len(block.content.text) for block in shown.blocks]
    assert sum(texts) < 2 * LONGEST_SHOWN
    assert all(text >= 200 for text in texts[:-1])
    calls = [{"id": "i" * 9_000, "function": {"name": "n" * 9_000, "arguments": "{}"}}] * 200
    shown = shown_message(StoredMessage(1, None, {"tool_calls": calls, "role": "r" * 9_000}, 1))
    assert sum(len(block.title) + len(block.note) for block in shown.blocks) < 30_000
    assert shown.role == ""
    assert shown.blocks[-1].title == "More fields"
