"""The archive of retirement: nothing that it lacks is removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from conversations import storage
from conversations.exceptions import ArchiveRefused
from conversations.rollout import retirement
from conversations.rollout.retirement import requirements
from conversations.rollout.sync import sync
from conversations.stores.chunks import archive_rows as blobs_module
from flags import transitions
from flags.phases import Phase
from memory.models import MemoryMetadata
from tests.support.factories import state, texts
from tests.support.legacy_schema import old_save
from tests.support.retirement import enter, everything_stored, retired, state_chunks, written

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_late_write_of_a_deleted_conversation_is_removed_and_not_archived(
    tmp_path: Path,
) -> None:
    written("c", "d")
    storage.delete_conversation("c")
    old_save(connection, "c", None, state("late").to_dict())
    path = tmp_path / "archive.jsonl"
    assert retired(archive=path) == {"c": "", "d": ""}
    assert state_chunks() == 0
    assert "late" not in path.read_text("ascii")


def test_where_there_is_nothing_the_archive_is_empty(tmp_path: Path) -> None:
    enter(Phase.NEW_ONLY)
    path = tmp_path / "archive.jsonl"
    assert retired(archive=path) == {}
    assert path.read_bytes() == b""
    assert list(retirement.restore_archive(path)) == []


def test_columns_of_the_host_in_these_tables_are_archived_too(tmp_path: Path) -> None:
    path = tmp_path / "archive.jsonl"
    tables = ("memory_chunks", "memory_metadata")

    def execute(statement: str) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    for table in tables:
        execute(f'ALTER TABLE {table} ADD COLUMN "their own" double precision')
    try:
        written("c")
        for table in tables:
            execute(f'UPDATE {table} SET "their own" = 0.1 + id')
        columns = 'SELECT "their own" FROM {} WHERE "their own" IS NOT NULL ORDER BY 1'
        before = execute(columns.format(tables[0]))
        assert len(before) == 2
        retired(archive=path)
        list(retirement.restore_archive(path))
        assert execute(columns.format(tables[0])) == before
        assert len(execute(columns.format(tables[1]))) == 16
    finally:
        for table in tables:
            execute(f'ALTER TABLE {table} DROP COLUMN "their own"')


def test_nothing_is_removed_that_is_not_in_the_archive(tmp_path: Path) -> None:
    """Neither by an archive of before, nor by one that is damaged."""
    written("c")
    path = tmp_path / "archive.jsonl"
    list(retirement.retire(archive=path, seconds=0))
    old_save(connection, "c", None, state("one", "two", "three", "late").to_dict())
    list(sync("tables"))
    before = everything_stored()
    with pytest.raises(ArchiveRefused, match="name another file"):
        retired(archive=path)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArchiveRefused, match="no whole archive"):
        retired(archive=damaged)
    assert everything_stored() == before
    assert retired(archive=tmp_path / "another.jsonl") == {"c": ""}


def test_an_archive_that_cannot_be_written_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c")
    before = everything_stored()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        retired(archive=tmp_path / "archive.jsonl")
    assert list(tmp_path.iterdir()) == []
    assert everything_stored() == before
    assert not transitions.status().retired


def test_a_blob_written_behind_the_archive_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c", "d")
    remove_one = retirement.remove._remove_one

    def meanwhile(legacy: Any, name: str, last_key: Any) -> Any:
        if name == "c":
            old_save(connection, "d", None, state("one", "two", "late").to_dict())
            list(sync("tables", ["d"]))
        return remove_one(legacy, name, last_key)

    monkeypatch.setattr(retirement.remove, "_remove_one", meanwhile)
    found = retired(archive=tmp_path / "archive.jsonl")
    assert (found["c"], "behind the archive" in found["d"]) == ("", True)
    assert texts(storage.load_state("d")) == ["one", "two", "late"]


def test_pages_and_groups_leave_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number}" for number in range(7)]
    written(*names)
    for name in ("PAGE", "READ_BYTES"):
        monkeypatch.setattr(blobs_module, name, 2)
    monkeypatch.setattr(retirement.remove, "PAGE", 2)
    for module in (requirements, retirement.archives):
        monkeypatch.setattr(module, "PROGRESS_EVERY", 5)
    before = everything_stored()
    held = retirement.holdings()
    assert (held.conversations, held.blobs) == (7, 14)
    assert held.content_bytes == sum(len(entry[2]) for entry in before if len(entry) == 5)
    assert held.metadata_rows == MemoryMetadata.objects.count()
    path = tmp_path / "archive.jsonl"
    said: list[str] = []
    retired(archive=path, progress=said.append)
    assert said == [
        "verified 5 conversations",
        *["archived 5 blobs", "archived 10 blobs", "read back 5 blobs", "read back 10 blobs"],
    ]
    list(retirement.restore_archive(path))
    assert everything_stored() == before
