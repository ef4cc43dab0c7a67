"""Everything works unprepared behind PgBouncer in transaction mode.

Where a session's state were relied on, a test here fails: the pooler gives a client another
server connection with every transaction, in turn.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client, override_settings
from django.urls import reverse

from conversations import storage
from conversations.rollout import findings
from conversations.rollout.sync import runs as syncs
from conversations.rollout.verification import runs as verifications, verify
from conversations.stores.registry import configured_store
from conversations.stores.sql.prepared import session_of
from conversations.writing import retention
from flags import health, metrics, transitions
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from tests.flags.test_switches import set_rows
from tests.machine.oldcode import OldSession
from tests.support import pooler as poolers
from tests.support.factories import message, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.pooler import Pooler
from tests.support.processes import Job, together
from tests.support.rollout import EASED, prepare

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="PgBouncer is for PostgreSQL"),
    pytest.mark.skipif(poolers.binary() is None, reason="there is no pgbouncer on the PATH"),
]

SIZE = 4
NOTHING = {(0, 0, 0, 0, None)}
LEGACIES = {"chunks": "memory_chunks", "jsonfield": OldSession.settings}


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[Pooler]:
    with django_db_blocker.unblock(), poolers.running(size=SIZE) as pooler:
        yield pooler


@pytest.fixture
def pooler(running: Pooler, transactional_db: None) -> Iterator[Pooler]:
    with poolers.through(running):
        yield running
    assert poolers.kept(running) == NOTHING


@pytest.fixture(params=LEGACIES)
def legacy(request: pytest.FixtureRequest) -> Iterator[str]:
    with override_settings(CONVERSATIONS={"LEGACY": LEGACIES[request.param], **EASED}):
        yield request.param


def session() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def test_a_client_gets_another_session_with_every_transaction(pooler: Pooler) -> None:
    assert len({session() for _ in range(SIZE)}) == SIZE
    with transaction.atomic():
        assert len({session() for _ in range(SIZE)}) == 1


def test_leftovers_of_a_session_would_be_seen() -> None:
    with poolers.running(size=1) as pooler:
        with psycopg.connect(pooler.url, autocommit=True) as client:
            client.execute("PREPARE kept AS SELECT 1")
            client.execute("DECLARE kept CURSOR WITH HOLD FOR SELECT 1")
            client.execute("CREATE TEMPORARY TABLE kept (id integer)")
            client.execute("SELECT pg_advisory_lock(7), set_config('lock_timeout', '9s', false)")
        assert poolers.kept(pooler) == {(1, 1, 1, 1, "lock_timeout")}


def test_no_query_of_ours_keeps_a_cursor_on_the_server() -> None:
    root = Path(__file__).resolve().parents[2]
    packages = ("conversations", "memory", "flags")
    modules = [path for name in packages for path in (root / name).rglob("*.py")]
    assert len(modules) > 100
    assert [path.name for path in modules if ".iterator(" in path.read_text("utf-8")] == []


def test_every_operation_in_every_phase(pooler: Pooler, legacy: str, phase: Phase) -> None:
    owner = User.objects.create_user("amira")
    name = str(uuid.uuid4())
    items = [{"content": f"item {number}", "relevance_score": 0.5} for number in range(5)]
    storage.save_state(name, state("a", "b", memory_context=items), owner)
    storage.append_messages(name, messages("c"), user_id=owner)
    storage.append_messages(name, messages("d"), user_id=owner, keys=["d"])
    storage.append_messages(name, messages("d"), user_id=owner, keys=["d"])
    loaded = storage.load_state(name, 0.4, user_id=owner, max_messages=2)
    assert texts(loaded) == ["c", "d"]
    loaded.conversation_history += messages("e")
    storage.save_state(name, loaded, owner)
    storage.replace_message(name, 1, message("A"), user_id=owner)
    assert storage.remove_messages(name, last=1, user_id=owner) == messages("e")
    storage.restore_message(name, 5, user_id=owner)
    storage.redact_message(name, 2, user_id=owner)
    storage.update_state_partial(name, {"step_count": 4}, owner)
    fork = storage.fork_conversation(name, 3, user_id=owner)
    assert texts(storage.load_state(name, user_id=owner))[2:] == ["c", "d", "e"]
    assert [page.message["content"] for page in storage.list_messages(name)][2:] == ["c", "d", "e"]
    listed = [one.conversation_id for one in storage.list_conversations(owner)]
    assert set(listed) == {name, fork}
    assert storage.get_conversation_id(owner) in listed
    assert storage.delete_conversation(name, owner)
    assert storage.load_state(name).conversation_history == []
    assert {found.in_order for found in verify()} <= {True}


def test_a_rollout_there_and_back_with_syncs_and_verifications(pooler: Pooler, legacy: str) -> None:
    set_rows(Phase.LEGACY)
    snapshot.forget()
    if legacy == "chunks":
        for number in range(5):
            old_save(connection, f"old-{number}", None, state(number).to_dict())
    storage.save_state("c", state("0"))
    for step, target in enumerate([Phase(number) for number in range(1, 5)], start=1):
        if target == Phase.NEW_READS:
            list(syncs.work(syncs.begin("tables")))
            list(verifications.work(verifications.begin()))
        prepare()
        transitions.advance()
        storage.append_messages("c", messages(str(step)))
        assert transitions.status().phase == target
        findings.findings()
    transitions.rollback(Phase.NEW_PRIMARY)
    list(syncs.work(syncs.begin("legacy")))
    transitions.rollback(Phase.LEGACY)
    transitions.emergency()
    storage.append_messages("c", messages("5"))
    transitions.resume()
    assert texts(storage.load_state("c")) == ["0", "1", "2", "3", "4", "5"]
    metrics.observe("load", "legacy", 0.1)
    metrics.flush()
    assert health.report().reasons is not None
    storage.replace_message("c", 1, message("x"))
    assert isinstance(list(retention.prune()), list)


def test_long_results_need_no_cursor_that_outlives_its_statement(
    pooler: Pooler, legacy: str
) -> None:
    store = configured_store()
    assert store is not None
    mark = store.mark()
    with forced_phase(Phase.DUAL_WRITE):
        names = [f"c{number:02}" for number in range(10)]
        for name in names:
            storage.save_state(name, state("a"))
    found = iter(store.ids_written_since(mark))
    first = next(found)
    # Another transaction, between two results: it takes the next session.
    session()
    assert sorted([first, *found]) == names
    run = syncs.begin("tables")
    list(syncs.work(run))
    assert syncs.last_finished("tables") is not None


def test_the_admin_lists_and_shows(pooler: Pooler, client: Client) -> None:
    with override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}):
        client.force_login(User.objects.create_superuser("root"))
        with forced_phase(Phase.DUAL_WRITE):
            storage.save_state("c", state("a", "b", memory_context=[{"content": "x"}]))
        for model in ("conversationstate", "conversationmessage", "conversationconflict"):
            assert client.get(reverse(f"admin:conversations_{model}_changelist")).status_code == 200
        for model in ("memorychunk", "memorycontextitem", "memorymetadata"):
            assert client.get(reverse(f"admin:memory_{model}_changelist")).status_code == 200
        assert (
            client.get(reverse("admin:conversations_conversationstate_legacy")).status_code == 200
        )
        assert client.get(reverse("admin:flags_transition_health")).status_code == 200


def write(conversation_id: str, name: str, count: int, legacy: Any) -> dict[str, Any]:
    """Append, in a process of its own. Returns: the texts, and the sessions that were used."""
    sessions = set()
    written = []
    with override_settings(CONVERSATIONS={"LEGACY": legacy}):
        for number in range(count):
            loaded = storage.load_state(conversation_id, max_messages=3)
            loaded.conversation_history += messages(f"{name}-{number}")
            storage.save_state(conversation_id, loaded)
            written.append(f"{name}-{number}")
            storage.append_messages(conversation_id, messages(f"{name}+{number}"))
            written.append(f"{name}+{number}")
            sessions.add(session())
    return {"texts": written, "sessions": sorted(sessions)}


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NEW_ONLY])
def test_clients_that_share_sessions_lose_nothing(
    pooler: Pooler, legacy: str, phase: Phase
) -> None:
    set_rows(phase)
    snapshot.forget()
    storage.save_state("c", state())
    jobs = [
        {"conversation_id": "c", "name": name, "count": 5, "legacy": LEGACIES[legacy]}
        for name in "abcdef"
    ]
    results = together(
        [Job("tests.routing.test_pgbouncer:write", job) for job in jobs], url=pooler.url
    )
    assert len({pid for result in results for pid in result["sessions"]}) == SIZE
    written = Counter(text for result in results for text in result["texts"])
    assert Counter(texts(storage.load_state("c"))) == written
    assert all(found.in_order for found in verify())


def test_nothing_is_prepared_behind_it(pooler: Pooler) -> None:
    """By default: the process number of a session there is made up."""
    storage.save_state("c", state("a"))
    for number in range(20):
        storage.append_messages("c", messages(number))
        storage.load_state("c")
    assert session_of(connection.connection).carries is False
    assert connection.connection.prepare_threshold is None
    assert poolers.kept(pooler) == NOTHING
