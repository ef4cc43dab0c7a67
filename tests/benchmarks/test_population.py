"""What workloads are measured on: a population, corpus, and databases of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.test import override_settings

from benchmarks.contenders import begun
from benchmarks.corpus import corpus
from benchmarks.databases import another, in_place, scratch
from benchmarks.population import populate, populated
from benchmarks.rounds import Run
from config.demo.rollout import flip
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.verification import verify
from conversations.storage import load_state, save_state
from flags.phases import Phase
from tests.benchmarks.said import MESSAGES
from tests.support.factories import state

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_population_equals_rows_written_by_the_store() -> None:
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


def test_the_same_seed_measures_the_same_corpus(tmp_path: Path) -> None:
    assert corpus(None, seed=3) == corpus(None, seed=3) != corpus(None, seed=4)
    lines = [{"id": "few", "messages": MESSAGES[:2]}, {"id": "many", "messages": MESSAGES[:1] * 30}]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = corpus(path, seed=1)
    assert (found.name, len(found.conversations)) == ("chats.jsonl", 1)
    assert len(found.conversations[0]) == 20
    assert found.messages(45) == MESSAGES[:1] * 45
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(ValueError, match="turns"):
        corpus(path, seed=1)


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
