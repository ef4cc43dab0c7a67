"""What is reported of old code, of what was set aside, and of what no load reads: no content."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from conversations.models import ConversationState
from conversations.rollout import findings
from conversations.rollout.findings import Aside, Findings
from conversations.rollout.sync import runs, sync
from conversations.rollout.sync.runs import last_finished
from conversations.rollout.verification import verify
from conversations.storage import append_messages, delete_conversation, save_state
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from flags.transitions import status
from memory.models import MemoryChunk
from tests.flags.test_switches import set_rows
from tests.support.factories import UserFactory, messages, state
from tests.support.legacy_schema import execute, old_save

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "a sentence nobody may read in a report"


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}


def dual(name: str, *lines: str, user: Any = None) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state(name, state(*lines), user)


def by_old_code(name: str, *lines: str, user: Any = None, at: datetime | None = None) -> int:
    return old_save(connection, name, user, state(*lines).to_dict(), at)


def reported() -> str:
    out = io.StringIO()
    call_command("conversations", "findings", stdout=out)
    assert SECRET not in out.getvalue()
    as_json = io.StringIO()
    call_command("conversations", "findings", "--json", stdout=as_json)
    assert list(json.loads(as_json.getvalue())) == ["findings"]
    assert SECRET not in as_json.getvalue()
    return out.getvalue()


def test_where_there_is_nothing_nothing_is_reported(settings: Any) -> None:
    assert reported() == "nothing to report\n"
    settings.CONVERSATIONS = {}
    assert findings.findings() == Findings()
    assert reported() == "nothing to report\n"


def left_legacy() -> None:
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE):
        set_rows(phase)
        snapshot.forget()
        status()


def test_a_blob_of_old_code_is_pending_and_then_taken_in() -> None:
    left_legacy()
    dual("a", "one")
    dual("b", "one")
    assert findings.findings().foreign_writes == 0
    at = timezone.now()
    by_old_code("a", "one", SECRET, at=at)
    assert list(findings.pending()) == ["a"]
    assert reported() == "       1  written by old code, not ingested yet\n       1  overtaken" + (
        f" state blobs ({findings.findings().leftovers.overtaken_bytes} bytes)\n"
    )
    list(sync("tables"))
    found = findings.findings()
    assert (found.foreign_writes, found.pending, found.omissions) == (1, 0, 0)
    assert found.last_foreign is not None
    assert found.last_foreign >= at


def test_old_codes_writes_count_from_the_step_that_left_legacy() -> None:
    long_ago = datetime(2024, 5, 1, tzinfo=UTC)
    by_old_code("a", "one", at=long_ago)
    list(sync("tables"))
    assert findings.findings().foreign_writes == 0
    left_legacy()
    assert findings.findings().foreign_writes == 0
    by_old_code("a", "one", "two")
    list(sync("tables"))
    assert findings.findings().foreign_writes == 1


def test_messages_that_old_code_left_out_are_counted_by_conversation() -> None:
    for name in "ab":
        dual(name, "one", "two", SECRET)
        for last in ("x", "y"):
            by_old_code(name, "one", last)
            list(sync("tables", [name]))
    dual("c", "one")
    found = findings.findings()
    assert (found.omissions, found.conflicts["merged"]) == (2, 4)
    assert "       2  with messages left out by old code\n" in reported()


def test_a_quarantined_blob_is_named_with_the_reason_and_its_class() -> None:
    mine, other = UserFactory(), UserFactory()
    for name in "abc":
        dual(name, "one", user=mine)
    chunk = by_old_code("a", "one", user=mine.pk)
    MemoryChunk.objects.filter(pk=chunk).update(content="{" + SECRET)
    by_old_code("b", "one", user=other.pk)
    by_old_code("b", "two", user=other.pk)
    by_old_code("c", user=mine.pk)
    list(sync("tables"))
    unreadable, foreign, empty = findings.quarantined()
    assert (unreadable.conversation_id, unreadable.reason_class) == ("a", "unreadable")
    assert foreign == Aside("b", "written for another owner", "other_owner", 2)
    assert empty == Aside("c", "an empty state", "empty", 1)
    found = findings.findings()
    assert dict(found.quarantined) == {"unreadable": 1, "other_owner": 1, "empty": 1}
    assert found.conflicts["quarantined"] == 4
    assert "b: 2 set aside: written for another owner\n" in reported()


def test_leftovers_that_no_load_reads_are_counted() -> None:
    dual("a", "one")
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("a", messages("two"))
        append_messages("a", messages("three"))
    dual("gone", "one")
    with forced_phase(Phase.DUAL_WRITE):
        delete_conversation("gone")
    by_old_code("gone", "late")
    unnamed = by_old_code("nobody", "x")
    execute(
        connection,
        "DELETE FROM memory_metadata WHERE chunk_id = %s AND key = 'conversation_id'",
        [unnamed],
    )
    left = findings.findings().leftovers
    assert (left.overtaken, left.unnamed, left.of_deleted, left.bare_metadata) == (2, 1, 1, 0)
    newest = MemoryChunk.objects.filter(metadata__value="a").order_by("-pk").first()
    assert newest is not None
    others = MemoryChunk.objects.filter(metadata__value="a").exclude(pk=newest.pk).distinct()
    assert left.overtaken_bytes == sum(len(chunk.content or "") for chunk in others)


# The failures of a sync


def broken(name: str) -> None:
    chunk = by_old_code(name, "one")
    MemoryChunk.objects.filter(pk=chunk).update(content="{" + SECRET)


def run_it() -> None:
    list(runs.work(runs.begin("tables")))


def test_a_failure_of_a_run_stands_until_it_is_mended() -> None:
    assert last_finished("tables") is None
    for name in "abc":
        broken(name)
    by_old_code("d", "one")
    run_it()
    synced = last_finished("tables")
    assert synced is not None
    assert synced.conversations == 4
    assert [(note.conversation_id, note.reason_class) for note in synced.failures] == [
        ("a", "unreadable"),
        ("b", "unreadable"),
        ("c", "unreadable"),
    ]
    assert SECRET not in repr(synced)
    assert "a: not carried over: legacy chunk" in reported()
    # One is mended and verified, one deleted, one repaired and not yet synced again.
    MemoryChunk.objects.filter(metadata__value="a").update(
        content=json.dumps(state("one").to_dict())
    )
    list(sync("tables", ["a"]))
    list(verify())
    with forced_phase(Phase.DUAL_WRITE):
        delete_conversation("b")
    synced = last_finished("tables")
    assert synced is not None
    assert [note.conversation_id for note in synced.failures] == ["c"]
    assert ConversationState.rows.count() == 2


def test_a_run_that_did_not_come_to_its_end_says_nothing() -> None:
    broken("a")
    run = runs.begin("tables")
    runs.cancel(run)
    assert last_finished("tables") is None
    run_it()
    first = last_finished("tables")
    second = runs.begin("tables")
    runs.pause(second)
    assert last_finished("tables") == first
    assert last_finished("legacy") is None
