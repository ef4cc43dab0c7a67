"""An archive is put back: as it was, but for what was deleted or redacted since."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from conversations import storage
from conversations.rollout import retirement
from conversations.rollout.retirement import Restored, Result
from conversations.rollout.sync import Action, sync
from flags import transitions
from flags.phases import Phase
from flags.switches import snapshot
from memory.models import MemoryChunk
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_load, old_save
from tests.support.retirement import (
    enter,
    everything_stored,
    loaded,
    retired,
    state_chunks,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("name", ["archive.jsonl", "archive.jsonl.gz"])
def test_an_archive_is_put_back_as_it_was(tmp_path: Path, name: str) -> None:
    user = UserFactory()
    written("c", "d", user=user)
    awkward = "NUL \\u0000, \\ud800 and žluť"
    old_save(connection, "c", user.pk, state("one", "two", "three", awkward).to_dict())
    list(sync("tables"))
    chunk = MemoryChunk.objects.order_by("pk").first()
    MemoryChunk.objects.filter(pk=chunk.pk).update(embedding=[0.1, 1e22], created_at=None)
    before, held = everything_stored(), loaded("c", "d")
    path = tmp_path / name
    retired(archive=path)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    assert [line["chunk"]["id"] for line in lines] == [
        str(entry[0]) for entry in before if len(entry) == 5
    ]
    assert everything_stored() == []
    assert {one.result for one in retirement.restore_archive(path)} == {Result.RESTORED}
    assert everything_stored() == before
    assert {one.result for one in retirement.restore_archive(path)} == {Result.THERE}
    assert everything_stored() == before
    assert loaded("c", "d") == held
    retirement.restore()
    snapshot.forget()
    # Nothing of it is taken for a new write of old code.
    assert {one.action for one in sync("tables")} == {Action.UNCHANGED}
    assert loaded("c", "d") == held


def test_from_an_archive_the_rollout_can_go_all_the_way_back(tmp_path: Path) -> None:
    written("c", "d")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    storage.append_messages("c", messages("since"))
    storage.remove_messages("d", last=1)
    list(retirement.restore_archive(path))
    retirement.restore(reason="an auditor", actor="ann")
    now = loaded("c", "d")
    assert not transitions.status().retired
    list(sync("legacy"))
    transitions.rollback(Phase.LEGACY)
    assert loaded("c", "d") == now
    for name, told in now.items():
        assert texts(state().from_dict(old_load(connection, name) or {})) == told


def test_nothing_deleted_or_redacted_comes_back_from_an_archive(tmp_path: Path) -> None:
    user, gone = UserFactory(), UserFactory()
    written("c", "d", user=user)
    enter(Phase.DUAL_WRITE)
    storage.save_state("nobodys", state("one"), gone)
    enter(Phase.NEW_ONLY)
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    storage.redact_message("c", 1)
    storage.delete_conversation("d")
    get_user_model().objects.get(pk=gone.pk).delete()
    found = list(retirement.restore_archive(path))
    results = {(one.conversation_id, one.result) for one in found}
    assert results == {
        ("c", Result.RESTORED),
        ("d", Result.DELETED),
        ("nobodys", Result.DELETED),
    }
    contents = " ".join(MemoryChunk.objects.values_list("content", flat=True))
    assert "one" not in contents
    assert "[redacted]" in contents
    assert texts(storage.load_state("c")) == ["[redacted]", "two", "three"]


def test_a_key_that_is_taken_by_now_is_no_obstacle(tmp_path: Path) -> None:
    written("c")
    path = tmp_path / "archive.jsonl"
    key = MemoryChunk.objects.order_by("pk").values_list("pk", flat=True).first()
    retired(archive=path)
    MemoryChunk.objects.create(pk=key, content="summary")
    for wanted in (Result.RESTORED, Result.THERE):
        assert {one.result for one in retirement.restore_archive(path)} == {wanted}
    assert MemoryChunk.objects.get(pk=key).content == "summary"
    assert state_chunks() == 2


def test_a_blob_whose_user_is_gone_is_reported(tmp_path: Path) -> None:
    written("c")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    record = json.loads(path.read_text("ascii").splitlines()[0])
    record["chunk"]["user_id"] = "987654"
    path.write_text(json.dumps(record), "ascii")
    (found,) = retirement.restore_archive(path)
    key = record["chunk"]["id"]
    assert found == Restored(key, "c", Result.FAILED, "user_id: its user is gone")


def test_a_restored_conversation_without_a_row_is_read_as_old_code_would(tmp_path: Path) -> None:
    """Into a database that does not know it: the newest blob is the truth there."""
    written("c")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    retirement.restore()
    lines = path.read_text("ascii").replace('"value":"c"', '"value":"elsewhere"')
    path.write_text(lines, "ascii")
    list(retirement.restore_archive(path))
    snapshot.forget()
    enter(Phase.LEGACY)
    assert texts(storage.load_state("elsewhere")) == ["one", "two"]
    enter(Phase.DUAL_WRITE)
    list(sync("tables", ["elsewhere"]))
    assert texts(storage.load_state("elsewhere")) == ["one", "two"]
    storage.append_messages("elsewhere", messages("more"))
    assert texts(storage.load_state("elsewhere")) == ["one", "two", "more"]
    assert old_load(connection, "elsewhere")["conversation_history"][-1]["content"] == "more"
