"""The bench: its floor does what the store does, it measures in turns, and leaves nothing behind.

Nothing here judges a time.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.test import Client, override_settings
from django.urls import path
from django.utils import timezone

from config.bench import (
    adminpages,
    chart,
    concurrent,
    dual,
    legacy,
    long,
    memory,
    moving,
    pages,
    scale,
    short,
)
from config.bench.counting import counted
from config.bench.databases import another, in_place, scratch
from config.bench.floors import Refused, bare_floor, floor_here, prepared
from config.bench.material import Material, material, new_owner
from config.bench.playing import add, begun, check, undone
from config.bench.population import populate, populated
from config.bench.report import lines_of
from config.bench.results import Ratio, Results
from config.bench.rows import messages_of, row_of
from config.bench.runs import Run
from config.bench.timing import Series, percentile, rotations
from config.bench.ways import FLOOR, FRESH, FRESH_SETTINGS, Api, Bottom, ways
from config.demo.rollout import flip
from config.management.commands import bench as command
from conversations.codec import MESSAGE_COLUMNS, decode_message, encode_message
from conversations.digests import digest_of
from conversations.models import ConversationMessage, ConversationState
from conversations.storage import load_state, save_state
from conversations.verification import verify
from flags.phases import Phase
from tests.factories import state

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[1]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1.0}'}}
MESSAGES: list[Any] = [
    {"role": "user", "content": "hello"},
    {"content": "hello", "role": "user"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL], "content": "I look"},
    {
        "role": "tool",
        "tool_call_id": "1",
        "tool_name": "look",
        "tool_success": True,
        "content": "x",
    },
    {
        "role": "tool",
        "tool_call_id": "1",
        "tool_name": "look",
        "tool_success": False,
        "content": "",
    },
    {"role": "tool", "tool_call_id": "1", "name": "look", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "image"}]},
    {"role": "user", "content": "at", "timestamp": "2026-01-02T03:04:05+00:00", "more": [1, 1.0]},
    {"role": "assistant", "content": "é 🚲", "message_type": "note"},
]
TURNS: tuple[Any, ...] = (tuple(MESSAGES[:2]), tuple(MESSAGES[2:5]), tuple(MESSAGES[5:]))


@pytest.fixture
def run() -> Run:
    """Return a run on a few messages, on the test database, which is not empty."""
    flip(Phase.NEW_ONLY)
    save_state("here before", state("a"))
    return Run(
        Material("few", (TURNS,)), new_owner(), rounds=2, seed=1, messages=60, conversations=6
    )


def rows_of(conversation_id: str) -> tuple[Any, list[Any]]:
    """Return what the tables hold, but for keys, numbers of rows and the time of the write."""
    row = ConversationState.objects.get(conversation_id=conversation_id)
    left_out = {"_state", "id", "conversation_id", "created_at", "updated_at"}
    columns = {name: value for name, value in vars(row).items() if name not in left_out}
    messages = []
    for found in ConversationMessage.objects.filter(conversation=row).order_by("sequence"):
        values = {**vars(found)}
        for name in ("_state", "id", "conversation_id"):
            del values[name]
        values["key"] = (values["key"][0], values["key"].rpartition(":")[2])
        if "timestamp" not in load_message(found):
            # Else it is the time of the write.
            assert values.pop("timestamp") is not None
        messages.append({name: _plain(value) for name, value in values.items()})
    return {name: _plain(value) for name, value in columns.items()}, messages


def load_message(found: ConversationMessage) -> Any:
    return decode_message({name: getattr(found, name) for name in MESSAGE_COLUMNS})


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.fixture
def floors() -> Iterator[dict[str, Any]]:
    with bare_floor() as bare, prepared():
        yield {"floor": floor_here(), "bare floor": bare}


@pytest.mark.parametrize("name", ["floor", "bare floor"])
def test_the_floor_writes_the_rows_that_the_store_writes(
    run: Run, floors: dict[str, Any], name: str
) -> None:
    for key in ("a", "b"):
        save_state(key, begun(MESSAGES[:2]), run.owner)
    loaded = load_state("a", user_id=run.owner)
    add(loaded, MESSAGES[2:], 2)
    save_state("a", loaded, run.owner)
    floor = floors[name]
    loaded, held = floor.load("b", run.owner)
    add(loaded, MESSAGES[2:], 2)
    floor.save("b", run.owner, loaded, MESSAGES[2:], held)
    assert rows_of("b") == rows_of("a")
    loaded = load_state("a", user_id=run.owner)
    assert loaded == load_state("b", user_id=run.owner) == floor.load("b", run.owner)[0]
    assert json.dumps(loaded.conversation_history) == json.dumps(MESSAGES)
    assert [found.kinds for found in verify(["b"])] == [found.kinds for found in verify(["a"])]


@pytest.mark.parametrize("seen", [True, False])
def test_the_floor_appends_as_the_store_does(run: Run, floors: dict[str, Any], seen: bool) -> None:
    for key in ("a", "b"):
        save_state(key, begun(MESSAGES[:2]), run.owner)
    api, floor = Api(FRESH, FRESH_SETTINGS), floors["floor"]
    _, held = floor.load("b", run.owner)
    for chunk in (MESSAGES[2:5], MESSAGES[5:]):
        api.append("a", run.owner, chunk, None)
        if seen:
            floor.append("b", run.owner, chunk, held)
        else:
            floor.append_unseen("b", run.owner, chunk)
    assert rows_of("b") == rows_of("a")


def test_the_floor_refuses_anothers_conversation_and_an_old_revision(
    run: Run, floors: dict[str, Any]
) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    floor = floors["floor"]
    loaded, held = floor.load("a", run.owner)
    before = rows_of("a")
    for call in (
        lambda: floor.load("a", run.owner + 1),
        lambda: floor.append("a", run.owner + 1, MESSAGES[:1], held),
        lambda: floor.append_unseen("a", run.owner + 1, MESSAGES[:1]),
    ):
        with pytest.raises(Refused):
            call()
    assert rows_of("a") == before
    floor.append("a", run.owner, MESSAGES[:1], floor.load("a", run.owner)[1])
    with pytest.raises(Refused):
        floor.save("a", run.owner, loaded, MESSAGES[:1], held)
    assert ConversationMessage.objects.filter(conversation__conversation_id="a").count() == 3


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_columns_written_by_hand_are_those_of_the_codec(message: Any) -> None:
    now = timezone.now()
    columns = encode_message(message, now=now)
    expected = [columns[name] for name in MESSAGE_COLUMNS]
    # Twice: the first time its shape is learnt.
    for _ in range(2):
        row = row_of(message, now=now)
        assert row == (*expected, digest_of(message), columns["timestamp"])
        assert json.dumps(messages_of([row[:-2]])) == json.dumps([message])


def test_the_floor_takes_one_statement_and_leaves_the_connection_as_it_was(run: Run) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    floor = floor_here()
    postgresql = connection.vendor == "postgresql"
    threshold = connection.connection.prepare_threshold if postgresql else None
    with prepared():
        loaded, held = floor.load("a", run.owner)
        with counted() as load:
            floor.load("a", run.owner)
        # Twice: the first time it is prepared.
        for _ in range(2):
            with counted() as save:
                floor.save("a", run.owner, loaded, MESSAGES[2:4], held)
    # Of SQLite: BEGIN, UPDATE, an INSERT a message, COMMIT.
    assert (load["statements"], save["statements"]) == ((1, 1) if postgresql else (2, 5))
    if postgresql:
        assert load["round_trips"] == save["round_trips"] == 1
        assert load["received_bytes"] > save["received_bytes"] > 0
        assert connection.connection.prepare_threshold == threshold
        with pytest.raises(ZeroDivisionError), prepared():
            raise ZeroDivisionError
        assert connection.connection.prepare_threshold == threshold


def test_what_is_undone_leaves_no_trace(run: Run) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    before = rows_of("a")
    with pytest.raises(ZeroDivisionError), undone("a"):
        loaded = load_state("a", user_id=run.owner)
        add(loaded, MESSAGES[2:4], 2)
        save_state("a", loaded, run.owner)
        assert rows_of("a") != before
        raise ZeroDivisionError
    assert rows_of("a") == before


def test_each_way_is_first_as_often_as_the_others() -> None:
    assert list(islice(rotations("abc"), 4)) == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_a_series_says_median_and_p95() -> None:
    series = Series()
    assert series.timed(max, 2, 3) == 3
    assert (len(series.seconds), len(series.cpu_seconds)) == (1, 1)
    series.seconds = [float(number) for number in range(100)]
    assert (series.median, series.p95) == (49.5, 95.0)
    assert percentile([3.0, 1.0], 0.99) == 3.0


def test_a_bar_is_met_by_what_equals_it() -> None:
    assert Ratio("w", "r", 1.5, bar=1.5).met
    assert not Ratio("w", "r", 1.51, bar=1.5).met
    assert Ratio("w", "r", 0.6, bar=0.6, at_least=True).met
    assert not Ratio("w", "r", 0.59, bar=0.6, at_least=True).met
    assert Ratio("w", "r", 1.0).met is None


def test_a_table_shows_each_ratio_beside_its_bar() -> None:
    results = Results("w")
    series = Series([0.002], [0.001])
    results.add("save", "tables", series, {"statements": 1})
    results.add("save", "floor", Series([0.001]), None)
    results.compare("save", "tables", "floor", bar=1.8)
    results.say("rate", 0.7, bar=0.6, at_least=True, unit="share")
    results.problems.append("something is not equal")
    text = [" ".join(line.split()) for line in lines_of(results)]
    assert "save tables 1 2.000 2.000 1.000 1 - - -" in text
    assert "save floor 1 1.000 1.000 - - - - -" in text
    assert "save: tables / floor 2.00 x <= 1.8 NOT MET" in text
    assert "rate 0.70 share >= 0.6 met" in text
    assert "! something is not equal" in text


def test_a_population_is_what_the_store_would_have_written() -> None:
    said: list[int] = []
    made = populate(messages=61, conversations=7, prefix="p-", progress=said.append)
    assert said == [61]
    assert (sum(made.lengths), len(made.lengths)) == (61, 7)
    assert ConversationMessage.objects.count() == 61
    assert not any(found.mismatched or found.failed for found in verify())
    for number, length in enumerate(made.lengths):
        loaded = load_state(made.name(number), user_id=made.owner(number))
        assert len(loaded.conversation_history) == length
        loaded.conversation_history.append(MESSAGES[0])
        assert save_state(made.name(number), loaded, made.owner(number))["revision"] == 2
    save_state("one more", begun(MESSAGES[:2]), made.owner(0))
    assert populate(messages=61, conversations=7, prefix="q-").lengths == made.lengths
    assert ConversationState.objects.count() == 15


# These have a row for every step of an operator, or for each process.
STEPS = {"sync_runs", "rollout_transitions", "rollout_processes"}


def sizes() -> dict[str, int]:
    """Return how many rows each of our tables has."""
    models = [
        model
        for label in ("conversations", "memory", "flags")
        for model in apps.get_app_config(label).get_models()
    ]
    return {model._meta.db_table: model._base_manager.count() for model in models}


@override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"})
def test_every_table_grows_with_a_population() -> None:
    """What does not grow, or is empty, says nothing of how long its list takes."""
    made = populate(messages=400, conversations=40, prefix="p-", beside=True)
    few = sizes()
    assert min(few.values()) > 0
    unequal = {found.conversation_id for found in verify() if found.mismatched or found.failed}
    assert unequal == {f"unmoved-{made.name(number)}" for number in range(1, 40, 4)}
    flip(Phase.NEW_ONLY)
    for number in range(40):
        loaded = load_state(made.name(number), user_id=made.owner(number))
        assert len(loaded.conversation_history) == made.lengths[number]
        assert len(loaded.memory_context) == number % 10
        loaded.conversation_history.append(MESSAGES[0])
        assert save_state(made.name(number), loaded, made.owner(number))["success"]
    assert len(load_state("unmoved-p-0000001").conversation_history) == made.lengths[1]
    before = sizes()
    populate(messages=4000, conversations=400, prefix="q-", beside=True)
    grown = {name: count - before[name] for name, count in sizes().items()}
    for name, count in grown.items():
        assert (count < 20) if name in STEPS else (8 <= count / few[name] <= 12), name


def test_no_workload_is_measured_beside_an_empty_legacy_that_another_one_left() -> None:
    populated()
    alone = sizes()
    assert alone["memory_chunks"] == 0
    populated(beside=True)
    both = sizes()
    assert both["memory_chunks"] > 0
    for _ in range(2):
        populated(beside=True)
        populated()
    assert sizes() == both


def test_what_is_measured_is_the_same_for_a_seed(tmp_path: Path) -> None:
    assert material(None, seed=3) == material(None, seed=3) != material(None, seed=4)
    lines = [{"id": "few", "messages": MESSAGES[:2]}, {"id": "many", "messages": MESSAGES[:1] * 30}]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = material(path, seed=1)
    assert (found.name, len(found.conversations)) == ("chats.jsonl", 1)
    assert len(found.conversations[0]) == 20
    assert found.messages(45) == MESSAGES[:1] * 45
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(ValueError, match="turns"):
        material(path, seed=1)


WORKLOADS: dict[str, Any] = {
    "short": (short.play, {}),
    "long": (long.play, {"sizes": (4, 20), "longest": 60}),
    "dual": (dual.play, {}),
    "legacy": (legacy.play, {"turns": 3, "messages": 12}),
    "memory": (memory.play, {"messages": 20, "stream": 2}),
    "moving": (moving.play, {"conversations": 3}),
    "scale": (scale.play, {"small": (30, 3)}),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_loads_what_it_saved_and_answers_its_bars(run: Run, name: str) -> None:
    play, sizes = WORKLOADS[name]
    before = rows_of("here before")
    # Of scale two hundred pages are asked for in each round.
    results = play(replace(run, rounds=1) if name == "scale" else run, **sizes)
    assert results.problems == []
    assert any(ratio.bar is not None for ratio in results.ratios) or name == "moving"
    assert all(measure.median_ms > 0 for measure in results.measures)
    assert json.loads(json.dumps(results.to_json()))["workload"] == name
    assert rows_of("here before") == before


def test_what_a_way_loses_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bottom.save

    def forgetful(self: Bottom, key: str, owner: Any, state: Any, new: Any, held: Any) -> None:
        whole(self, key, owner, state, new[1:], held)

    monkeypatch.setattr(Bottom, "save", forgetful)
    problems = short.play(run).problems
    assert "bench-short-0-saved-floor does not load as put in by tables" in problems
    assert not any("saved-tables" in problem for problem in problems)


def test_a_lost_message_and_a_wrong_count_are_found(run: Run) -> None:
    save_state("a", state("x", "y", "z"))
    assert concurrent.lost("a", 3) == []
    ConversationMessage.rows.filter(sequence=2).delete()
    assert concurrent.lost("a", 3) == ["1 of 3 messages were lost"]
    ConversationState.rows.filter(conversation_id="a").update(message_count=2)
    assert len(concurrent.lost("a", 3)) == 2


def databases() -> set[str]:
    if connection.vendor == "sqlite":
        return set()
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return {name for (name,) in cursor.fetchall()}


def test_a_scratch_database_is_another_one_and_is_dropped(run: Run) -> None:
    here, made = connections[DEFAULT_DB_ALIAS], set()
    with pytest.raises(ZeroDivisionError), scratch(connection.vendor):
        assert not ConversationState.objects.exists()
        save_state("scratched", state("a"))
        made.add(connections[DEFAULT_DB_ALIAS].settings_dict["NAME"])
        with another() as handle:
            made.add(handle.settings_dict["NAME"])
            assert len(made) == 2
            if connection.vendor == "postgresql":
                assert made <= databases()
            assert ConversationState.objects.count() == 1
            with in_place(handle):
                assert not ConversationState.objects.exists()
                assert ContentType.objects.get_for_model(ConversationState).pk
        if connection.vendor == "sqlite":
            assert not Path(handle.settings_dict["NAME"]).exists()
        ContentType.objects.get_for_model(ConversationState)
        raise ZeroDivisionError
    assert connections[DEFAULT_DB_ALIAS] is here
    assert ContentType.objects._cache == {}
    assert [row.conversation_id for row in ConversationState.objects.all()] == ["here before"]
    # The other workers' tests make and drop theirs on the same server meanwhile.
    assert not made & databases()


def test_the_other_kind_of_database_is_to_be_had_as_well() -> None:
    here, vendor = connections[DEFAULT_DB_ALIAS], connection.vendor
    other = {"sqlite": "postgresql", "postgresql": "sqlite"}[vendor]
    # Only asked, not used: in one process the store learns of one kind of database.
    with scratch(other):
        assert connection.vendor == other
        known = connection.get_connection_params()
        place = Path(known["host"] if other == "postgresql" else known["database"])
        assert place.exists()
    assert connections[DEFAULT_DB_ALIAS] is here
    assert not place.exists()


def bench(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("bench", *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def test_the_command_prints_tables_or_json_and_touches_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        json.dumps({"id": "a", "messages": [m for _ in range(4) for m in MESSAGES[:3]]})
    )
    arguments = ("--workload", "short", "--rounds", "1", "--data", str(path))
    code, text = bench(*arguments)
    assert code == 0, text
    assert "save: tables / floor" in text
    assert str(tmp_path) not in text
    code, text = bench(*arguments, "--json", "--prepare")
    assert code == 0, text
    found = json.loads(text)
    assert found["command"].endswith("--data chats.jsonl --prepare")
    assert [workload["workload"] for workload in found["workloads"]] == ["short"]
    counts = {
        (measure["operation"], measure["way"]): measure["statements"]
        for measure in found["workloads"][0]["measures"]
    }
    assert counts["load", FLOOR] == (1 if connection.vendor == "postgresql" else 2)
    assert [row.conversation_id for row in ConversationState.objects.all()] == ["here before"]


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    assert bench("--rounds", "0")[0] == 2
    assert bench("--from", "a.json")[0] == 2
    assert bench("--data", str(tmp_path / "absent.jsonl"))[0] == 1
    assert bench("--chart", "x.svg", "--from", str(tmp_path / "absent.json"))[0] == 1


def test_the_command_fails_when_something_is_not_equal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unequal(run: Run) -> Results:
        return Results("short", problems=["a does not load as put in"])

    monkeypatch.setitem(command.WORKLOADS, "short", unequal)
    code, text = bench("--workload", "short")
    assert (code, "1 things were not equal" in text) == (1, True)


def figures(database: str) -> dict[str, Any]:
    measures = [
        {"workload": workload, "operation": operation, "way": way, "median_ms": 1.234}
        for workload, operation, _ in chart.GROUPS
        for way in chart.WAYS
    ]
    return {"database": database, "workloads": [{"measures": measures}]}


def test_the_chart_shows_every_figure_of_a_run(tmp_path: Path) -> None:
    runs = [figures("postgresql 18.1"), figures("sqlite 3.40.1")]
    paths = []
    for place, found in enumerate(runs):
        paths.append(tmp_path / f"{place}.json")
        paths[-1].write_text(json.dumps(found))
    target = tmp_path / "bench.svg"
    assert bench("--chart", str(target), "--from", *map(str, paths))[0] == 0
    text = target.read_text()
    assert text == chart.drawn(runs)
    assert text.count(">1.23<") == 2 * len(chart.GROUPS) * len(chart.WAYS)
    assert "PostgreSQL 18.1" in text
    assert "prefers-color-scheme: dark" in text
    del runs[0]["workloads"][0]["measures"][0]
    with pytest.raises(ValueError, match="has not measured"):
        chart.drawn(runs)


def test_a_page_gets_new_results_behind_what_was_written_by_hand(tmp_path: Path) -> None:
    page, run = tmp_path / "performance.md", tmp_path / "run.json"
    results = Results("short", notes=["a note"])
    results.add("save", "tables", Series([0.002], [0.001]), {"statements": 1})
    results.say("save: tables / floor", 1.5, bar=1.8)
    results.say("rate", 0.5, bar=0.6, at_least=True, unit="share")
    about = {"date": "2026-01-01", "command": "manage.py bench", "database": "sqlite 3", "cores": 2}
    run.write_text(json.dumps({**about, "workloads": [results.to_json()]}))
    page.write_text(f"# By hand\n\n{pages.MARK}\nearlier results\n")
    for _ in range(2):
        assert bench("--page", str(page), "--from", str(run))[0] == 0
        assert page.read_text().splitlines() == [
            *("# By hand", "", pages.MARK, "", "## sqlite 3, 2026-01-01", ""),
            *("    manage.py bench", "", "cores 2.", "", "### short", ""),
            *("| figure | value | bar | |", "|---|---:|---:|---|"),
            "| save: tables / floor | 1.50 x | ≤ 1.8 | met |",
            "| rate | 0.50 share | ≥ 0.6 | **not met** |",
            *("", "a note", ""),
            "|  | way | calls | median ms | p95 ms | CPU ms | statements |",
            "|---|---|---:|---:|---:|---:|---:|",
            "| save | tables | 1 | 2.000 | 2.000 | 1.000 | 1 |",
        ]
    page.write_text("# By hand\n")
    assert bench("--page", str(page), "--from", str(run))[0] == 1
    assert page.read_text() == "# By hand\n"


def test_the_page_of_results_says_what_each_workload_does() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    by_hand, mark, _ = page.partition(pages.MARK)
    assert mark
    assert re.findall(r"^\| `(\w+)` \|", by_hand, re.M) == list(command.WORKLOADS)


def test_every_way_is_checked_through_its_own_loads(run: Run) -> None:
    results = Results("short")
    with ways(prepare=False) as known:
        for way in known:
            with way.taken():
                way.create(f"c-{way.name}", run.owner, begun(MESSAGES))
            check(results, way, f"c-{way.name}", MESSAGES, owner=run.owner)
            assert results.problems == []
            check(results, way, f"c-{way.name}", MESSAGES[:-1], owner=run.owner)
            assert len(results.problems) == 1
            results.problems.clear()


def test_many_writers_lose_nothing() -> None:
    # Processes are forked: from one that has no threads, which pytest's may have.
    arguments = [
        *(sys.executable, "manage.py", "bench", "--workload", "concurrent"),
        *("--rounds", "1", "--writers", "4", "--json", "--database", connection.vendor),
    ]
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["workloads"]
    assert found["problems"] == []
    lost = [ratio for ratio in found["ratios"] if "lost" in ratio["name"]]
    assert [(ratio["value"], ratio["met"]) for ratio in lost] == [(0.0, True), (0.0, True)]
    assert {measure["calls"] for measure in found["measures"]} == {4 * concurrent.APPENDS}


def test_every_list_of_the_admin_is_found(run: Run, client: Client) -> None:
    """A list, or a page, that somebody adds is measured, or the bench says that it cannot be."""
    client.force_login(get_user_model().objects.create_superuser("root"))
    populate(messages=4000, conversations=400, beside=True)
    with override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}):
        pages = adminpages.pages_of(client)
        groups = {page.group for page in pages}
        for model, shown in admin.site._registry.items():
            name = f"{model._meta.app_label}/{model._meta.model_name}"
            ours = model._meta.app_label in adminpages.OURS or name == "waffle/switch"
            assert (name in groups) == ours
            if ours:
                assert (f"{name}, searched" in groups) == bool(shown.search_fields)
                assert (f"{name}, filtered" in groups) == bool(shown.list_filter)
        assert "conversations_conversationstate_legacy, next" in groups
        assert "flags_transition_health" in groups
        assert len({(page.group, page.what) for page in pages}) == len(pages) > 150
        # A page of a million rows is to be as full as one of ten thousand messages.
        short = {f"flags/{name}" for name in ("transition", "reportingprocess")}
        for name in groups - {f"{name}, next" for name in groups}:
            paged = "/" in name and "," not in name and name != "waffle/switch"
            paged = paged and name not in {*short, "conversations/syncrun"}
            assert not paged or f"{name}, next" in groups


def test_a_page_of_the_admin_that_nobody_knows_how_to_ask_for_is_no_page_to_leave_out(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    shown: Any = admin.site.get_model_admin(ConversationState)
    known = shown.get_urls()
    monkeypatch.setattr(
        shown, "get_urls", lambda: [path("new/", lambda request: None, name="a_new_page"), *known]
    )
    with (
        override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}),
        pytest.raises(LookupError, match="a_new_page"),
    ):
        adminpages.pages_of(client)


def test_of_what_is_asked_alike_the_worst_is_told() -> None:
    pages = [adminpages.Page("a list, filtered", what, "/") for what in ("x", "y", "only here")]
    few, many = (
        scale.Place(name, connection, None, (), None, list(pages[:count]))  # type: ignore[arg-type]
        for name, count in (("few", 3), ("many", 2))
    )
    groups = scale._groups([few, many])
    assert groups["admin: a list, filtered"] == [
        f"admin: a list, filtered, {what}" for what in ("x", "y")
    ]
    assert groups["load"] == ["load"]
