"""The demo: the rollout of the main job loses nothing, and its figures are what they say."""

from __future__ import annotations

import gzip
import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection

from config.demo import runs, sizes, synthetic
from config.demo.comparison import Comparison, sampled
from config.demo.measures import Measure
from config.demo.report import comparison_lines
from config.demo.rollout import Rollout, flip
from config.demo.turns import Conversation, bounded, conversations_of, turns_of
from config.management.commands import demo
from conversations import formats
from conversations.content.document import Document
from conversations.models import ConversationMessage, ConversationState, ConversationTombstone
from conversations.rollout.verification import verify
from conversations.state import AgentState
from conversations.storage import load_state, save_state
from flags.phases import Phase, phase_of
from flags.switches import current_plan, try_read_settings
from memory.models import MemoryChunk, MemoryMetadata

pytestmark = pytest.mark.django_db(transaction=True)

STEPS = [
    "legacy",
    "dual_write",
    "sync --to tables",
    "verify",
    "new_reads",
    "new_primary",
    "new_only",
    "back to new_primary",
    "sync --to legacy",
    "back to new_reads",
    "back to dual_write",
    "back to legacy",
    "verify",
]


def few(count: int = 3) -> list[Conversation]:
    return conversations_of(
        islice(synthetic.conversations(), count), prefix="demo-1-", most_turns=20
    )


def run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("demo", "--no-serve", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def test_the_rollout_there_and_back_loses_nothing() -> None:
    conversations = few()
    steps = list(Rollout(conversations).steps())
    assert [(step.name, step.problems) for step in steps] == [(name, ()) for name in STEPS]
    done = {step.name: step.done for step in steps}
    assert done["sync --to tables"] == "1 unchanged, 2 taken in"
    assert steps[3].done == "0 mismatches; 3 equal in both stores"
    assert "written to legacy" in done["sync --to legacy"]
    for conversation in conversations:
        state = load_state(conversation.id, user_id=conversation.owner)
        assert state.conversation_history == conversation.document.messages
        assert state.memory_context == conversation.document.items
    assert not any(found.mismatched or found.failed for found in verify())


def test_each_step_of_the_rollout_flips_the_switches_in_the_database() -> None:
    phases = []
    for step in Rollout(few(1)).steps():
        settings = try_read_settings()
        assert settings is not None
        assert phase_of(settings.switches) == current_plan().phase
        phases.append((step.name.removeprefix("back to "), current_plan().phase.label))
    flipped = [name for name, _ in phases if name in {phase.label for phase in Phase}]
    assert [label for name, label in phases if name in flipped] == flipped
    assert flipped[-1] == "legacy"


def test_each_step_says_what_either_store_takes() -> None:
    steps = list(Rollout(few(2)).steps())
    first, dual, synced = steps[0].sizes, steps[1].sizes, steps[2].sizes
    assert first["tables"].rows == 0
    assert (first["legacy"].rows > 0, first["legacy"].rows % 9) == (True, 0)
    assert dual["tables"].rows > 0
    assert synced["tables"].rows > dual["tables"].rows
    assert first["legacy"].bytes > 0
    # An empty table and its indexes take pages as well.
    assert synced["tables"].bytes > first["tables"].bytes > 0
    assert steps[0].seconds["legacy"] > steps[0].seconds["tables"]


def test_a_conversation_that_loads_otherwise_than_saved_is_reported() -> None:
    steps = Rollout(few(2)).steps()
    for step in steps:
        assert step.problems == ()
        if step.name == "new_only":
            break
    ConversationMessage.rows.filter(sequence=1).update(content="tampered")
    lost = next(steps).problems
    assert len(lost) == 2
    assert all("does not load as it was put in" in line for line in lost)


def test_synthetic_conversations_are_the_same_for_a_seed() -> None:
    assert list(synthetic.conversations()) == list(synthetic.conversations())
    assert list(synthetic.conversations(seed=1)) != list(synthetic.conversations())


def test_synthetic_conversations_are_long_use_tools_and_are_of_many_scripts() -> None:
    found = list(synthetic.conversations())
    turns = [len(turns_of(each.state.conversation_history)) for each in found]
    assert (len(found), min(turns), max(turns)) == (40, 20, 200)
    messages = [message for each in found for message in each.state.conversation_history]
    assert {message["role"] for message in messages} == {"system", "user", "assistant", "tool"}
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert all("part" in json.loads(call["function"]["arguments"]) for call in calls)
    answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert sorted(answered) == sorted(call["id"] for call in calls)
    items = [item for each in found for item in each.state.memory_context]
    assert all(0 <= item["relevance_score"] <= 1 for item in items)
    text = json.dumps(messages, ensure_ascii=False)
    for script in ("chain", "größere", "¿", "цепь", "αλυσίδα", "链条", "チェーン", "السلسلة", "चेन"):
        assert script in text
    assert {each.state.extra["source"] for each in found} == {"synthetic"}


def test_turns_begin_with_a_users_message_and_lose_none() -> None:
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "user", "assistant"]
    messages = [{"role": role, "content": str(n)} for n, role in enumerate(roles)]
    turns = turns_of(messages)
    assert [[message["role"] for message in turn] for turn in turns] == [
        ["system", "user", "assistant", "tool", "assistant"],
        ["user"],
        ["user", "assistant"],
    ]
    assert [message for turn in turns for message in turn] == messages
    assert turns_of([]) == ()


def test_the_earliest_of_too_many_turns_become_one() -> None:
    turns = tuple(({"role": "user", "content": str(n)},) for n in range(5))
    assert bounded(turns, 5) == bounded(turns, 9) == turns
    assert bounded(turns, 3) == (turns[0] + turns[1] + turns[2], turns[3], turns[4])


def test_an_id_that_comes_again_gets_a_number_and_an_empty_conversation_is_left_out() -> None:
    said = AgentState(conversation_history=[{"role": "user", "content": "hi"}])
    found = [
        formats.Conversation("a", None, said),
        formats.Conversation("empty", None, AgentState()),
        formats.Conversation("a", "u", said),
    ]
    made = conversations_of(found, prefix="demo-7-", most_turns=20)
    assert [one.id for one in made] == ["demo-7-a", "demo-7-a#2"]
    assert made[0].owner != made[1].owner


@pytest.mark.parametrize("dbstat", [True, False])
def test_bytes_are_measured_also_by_an_sqlite_without_dbstat(
    monkeypatch: pytest.MonkeyPatch, dbstat: bool
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL says itself what its tables take")
    flip(Phase.NEW_ONLY)
    monkeypatch.setattr(sizes, "_has_dbstat", lambda cursor: dbstat)
    before = sizes.size_of("tables")
    save_state("c", AgentState(conversation_history=[{"content": "x" * 100_000}]))
    grown = sizes.size_of("tables").bytes - before.bytes
    assert 90_000 < grown < 120_000
    assert ("no dbstat" in sizes.how_weighed()) is not dbstat


def test_the_comparison_measures_every_way_and_leaves_nothing_behind() -> None:
    # Long enough that the empty pages of a table's indexes do not decide about its bytes.
    (long,) = islice(synthetic.conversations(9), 7, 8)
    conversations = conversations_of([long], prefix="demo-1-", most_turns=200)
    flip(Phase.LEGACY)
    comparison = Comparison(conversations)
    measures = {measure.name: measure for measure in comparison.run()}
    assert comparison.problems == []
    assert comparison.turns == len(conversations[0].turns)
    assert list(measures) == [
        "median save",
        "median load",
        "peak memory, load",
        "peak memory, turn",
        "bytes",
    ]
    for measure in measures.values():
        assert all(value > 0 for value in measure.values.values())
    assert measures["bytes"].met("legacy")
    for model in (ConversationState, ConversationMessage, MemoryChunk, MemoryMetadata):
        assert not model._base_manager.exists()
    assert current_plan().phase == Phase.LEGACY


def test_the_comparison_reports_a_conversation_that_loads_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversations = few(1)
    monkeypatch.setattr(Conversation, "state_after", lambda self, played: {"other": played})
    monkeypatch.setattr(Conversation, "add", lambda self, state, number: None)
    comparison = Comparison(conversations)
    comparison.run()
    assert len(comparison.problems) == 3


def test_a_floor_is_met_only_by_more_than_it_asks() -> None:
    def measure(tables: float) -> Measure:
        return Measure("x", "ms", 0.20, {"old code": 1.0, "legacy": 2.0, "tables": tables})

    assert measure(1.59).met("legacy")
    assert not measure(1.6).met("legacy")
    assert not measure(1.59).met("old code")
    assert not Measure("x", "kB", 0.20, {"legacy": 0.0, "tables": 0.0}).met("legacy")
    *_, verdicts, _, floor = comparison_lines([measure(1.59)], turns=1, weighed="pages")
    assert " ".join(verdicts.split()) == "x >20% less 20% (1.3x) met -59% (0.6x) not met"
    assert floor.endswith("tables against legacy: met.")
    floor = comparison_lines([measure(1.59), measure(1.6)], turns=1, weighed="pages")[-1]
    assert floor.endswith("tables against legacy: not met (x).")


def test_the_sample_is_spread_over_all_lengths_that_leave_room() -> None:
    turn = ({"role": "user", "content": "hi"},)
    conversations = [
        Conversation(str(length), None, Document.from_dict({}), (turn,) * length)
        for length in (*range(1, 51), 300)
    ]
    lengths = [len(one.turns) for one in sampled(conversations)]
    assert lengths == list(range(49, 0, -3))
    assert sampled(conversations[-1:]) == conversations[-1:]


def test_the_command_ends_with_0_and_can_be_repeated() -> None:
    for number in (1, 2):
        code, out = run("--limit", "1")
        assert code == 0, out
        assert "1 synthetic conversations" in out
        assert "0 mismatches" in out
        assert "Our floor" in out
        assert ("1 conversations of an earlier demo were deleted." in out) == (number == 2)
        held = ConversationState.objects.values_list("conversation_id", flat=True)
        assert list(held) == [f"demo-{number}-synthetic-en-001"]
    assert [buried.conversation_id for buried in ConversationTombstone.objects.all()] == [
        "demo-1-synthetic-en-001"
    ]
    assert not get_user_model().objects.filter(is_superuser=True).exists()


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.NEW_ONLY], ids=lambda phase: phase.label)
def test_conversations_that_are_not_the_demos_are_not_touched(phase: Phase) -> None:
    flip(phase)
    save_state("demo-1-a", AgentState(user_input="earlier"))
    save_state("precious", AgentState(user_input="hello"))
    code, out = run("--limit", "1")
    assert code == 1
    assert "not the demo's ('precious')" in out
    assert current_plan().phase == phase
    assert load_state("precious").user_input == "hello"
    assert load_state("demo-1-a").user_input == "earlier"
    assert not get_user_model().objects.exists()


def test_a_run_never_takes_an_id_of_an_earlier_one() -> None:
    assert runs.free_prefix() == "demo-1-"
    save_state("demo-1-a", AgentState(user_input="x"))
    assert runs.remove_earlier() == 1
    assert runs.free_prefix() == "demo-2-"


@pytest.mark.parametrize("zipped", [False, True])
def test_the_command_plays_a_file(tmp_path: Path, zipped: bool) -> None:
    said = [
        {"role": "user", "content": "安い傘はありますか"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "1", "content": "[]"},
        {"role": "assistant", "content": "はい"},
    ]
    lines = [said, {"messages": said[:1]}, {"id": "named", "user": "u", "messages": said}]
    text = "\n".join(map(json.dumps, lines)).encode()
    path = tmp_path / "chats.jsonl"
    path.write_bytes(gzip.compress(text) if zipped else text)
    code, out = run("--data", str(path))
    assert code == 0, out
    assert out.startswith("3 conversations of chats.jsonl: 9 messages, 3 turns")
    for name in ("chats-1", "named"):
        assert load_state(f"demo-1-{name}").conversation_history == said


def test_the_command_says_which_turns_it_does_not_play_one_by_one(tmp_path: Path) -> None:
    said = [{"role": "user", "content": str(n)} for n in range(demo.MOST_TURNS + 5)]
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "long", "messages": said}))
    code, out = run("--data", str(path))
    assert code == 0, out
    assert "1 of them are longer: of those the last 19 turns are played" in out
    assert load_state("demo-1-long").conversation_history == said


def test_the_command_exits_with_1_when_something_is_not_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rollout, "_unequal", lambda self: ["c does not load as it was put in"])
    code, out = run("--limit", "1")
    assert code == 1
    assert "  ! c does not load as it was put in" in out


def test_a_bad_file_ends_the_command_with_its_place_before_anything_is_removed(
    tmp_path: Path,
) -> None:
    flip(Phase.LEGACY)
    save_state("demo-1-a", AgentState(user_input="earlier"))
    path = tmp_path / "chats.jsonl"
    path.write_text('{"id": "a", "messages": [{"role": "user"}]}\n[3]\n')
    code, out = run("--data", str(path))
    assert code == 1
    assert "line 2" in out
    assert "messages[0]" in out
    assert run("--data", str(tmp_path / "absent.jsonl"))[0] == 1
    assert MemoryChunk.objects.count() == 1


@pytest.mark.parametrize("debug", [True, False])
def test_only_with_debug_is_there_an_administrator_whose_login_is_printed(
    settings: Any, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    settings.DEBUG = debug
    called: list[tuple[Any, ...]] = []
    whole = demo.call_command

    def instead(name: str, *arguments: Any, **options: Any) -> Any:
        if name != "runserver":
            return whole(name, *arguments, **options)
        called.append((*arguments, options))
        return None

    monkeypatch.setattr(demo, "call_command", instead)
    out = io.StringIO()
    call_command("demo", "--serve", "--limit", "1", "--port", "8123", stdout=out)
    assert called == [("127.0.0.1:8123", {"use_reloader": False})]
    assert "http://127.0.0.1:8123/admin/" in out.getvalue()
    administrators = get_user_model().objects.filter(is_superuser=True)
    if not debug:
        assert "No demo administrator was created, because DEBUG is off." in out.getvalue()
        assert not administrators.exists()
        return
    words = out.getvalue().split()
    password = words[words.index("password") + 1]
    user = administrators.get()
    assert (user.username, user.is_staff) == ("demo", True)
    assert user.check_password(password)
