"""The first migrations: they adopt a host's tables under its writers, or create the same ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from io import StringIO
from itertools import count
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import OperationalError

from memory.adoption import columns_of, has_check
from tests.support.adopted import OWNED, START, legacy_rows, make_host, our_tables, saved_state
from tests.support.legacy_schema import create_legacy_tables, execute, old_load, old_save
from tests.support.scratch import ALIAS, migrate, plain_connection

METADATA_INDEXES = {
    "metadata_conversation_chunk",
    "metadata_by_chunk",
    "metadata_conversation_key",
    "metadata_message_key",
    "metadata_context_item_key",
}


def _indexes(connection: BaseDatabaseWrapper, table: str) -> set[str]:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table)
    return {name for name, facts in found.items() if facts["index"] and not facts["primary_key"]}


class OldWriter:
    """Old code in a process of its own: it saves conversation `busy` until it is stopped."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.saved: list[int] = []
        self.slowest_seconds = 0.0
        self.error: Exception | None = None
        self._connection = connection
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with closing(plain_connection(self._connection)) as plain:
                for step in count(1):
                    # a pause, or SQLite's busy handler never finds a gap between two writes
                    if self._stopped.wait(0.005):
                        return
                    started = time.monotonic()
                    stamp = START + timedelta(seconds=step)
                    self.saved.append(old_save(plain, "busy", 1, saved_state(step % 30), stamp))
                    self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
        except Exception as error:  # shown by the test's own thread
            self.error = error

    def wait_for(self, saves: int) -> None:
        """Return when it has saved so often since now."""
        target = len(self.saved) + saves
        _until(lambda: len(self.saved) >= target or self.error is not None)

    def __enter__(self) -> OldWriter:
        self._thread.start()
        self.wait_for(3)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()
        if exc[0] is None and self.error is not None:
            raise self.error


def _until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def test_old_code_writes_a_chunk_and_eight_rows(legacy: BaseDatabaseWrapper) -> None:
    """The stand-in for old code is held to docs/design.md, section 5, itself."""
    chunk_id = old_save(legacy, "c-2", 1, saved_state(25), START)
    kept = {
        **saved_state(25),
        "conversation_history": saved_state(25)["conversation_history"][-20:],
    }
    content = execute(legacy, f"SELECT content FROM memory_chunks WHERE id = {chunk_id}")
    assert content == [(json.dumps(kept),)]
    assert "\\u00e9" in content[0][0]
    assert execute(
        legacy, f"SELECT key, value FROM memory_metadata WHERE chunk_id = {chunk_id} ORDER BY id"
    ) == [
        ("conversation_id", "c-2"),
        ("type", "state"),
        ("last_updated", "2024-05-01T12:00:00+00:00"),
        ("optimization_applied", "true"),
        ("original_conversation_length", "25"),
        ("optimized_conversation_length", "20"),
        ("original_context_length", "0"),
        ("optimized_context_length", "0"),
    ]


@pytest.mark.parametrize("indexed", [False, True])
def test_adoption_keeps_every_legacy_row(scratch: BaseDatabaseWrapper, indexed: bool) -> None:
    legacy = make_host(scratch, indexed=indexed)
    before = legacy_rows(legacy)
    migrate()
    assert legacy_rows(legacy) == before
    assert old_load(legacy, "c-1") == saved_state(2)
    assert len(before["chunks"]) == 2
    assert len(before["metadata"]) == 16


def test_old_code_saves_before_during_and_after_migrate(
    legacy: BaseDatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_migration, between = MigrationExecutor.apply_migration, 0
    with OldWriter(legacy) as writer:
        before = len(writer.saved)

        def awaited(*args: Any, **options: Any) -> Any:
            nonlocal between
            state = apply_migration(*args, **options)
            writer.wait_for(1)
            between += 1
            return state

        monkeypatch.setattr(MigrationExecutor, "apply_migration", awaited)
        migrate()
        monkeypatch.undo()
        writer.wait_for(3)
    assert before >= 3
    assert between >= 3
    found = execute(
        legacy,
        "SELECT chunk_id, count(*) FROM memory_metadata WHERE chunk_id IN"
        " (SELECT chunk_id FROM memory_metadata WHERE key = 'conversation_id' AND value = 'busy')"
        " GROUP BY chunk_id ORDER BY chunk_id",
    )
    assert found == [(chunk_id, 8) for chunk_id in writer.saved]
    old_save(legacy, "c-1", 1, saved_state(3), START + timedelta(days=1))
    assert old_load(legacy, "c-1") == saved_state(3)


def test_old_code_saves_while_migrating_backwards_and_forwards_again(
    legacy: BaseDatabaseWrapper,
) -> None:
    migrate()
    with OldWriter(legacy) as writer:
        for _ in range(2):
            migrate("memory", "zero")
            writer.wait_for(2)
            migrate()
            writer.wait_for(2)
    chunks = execute(legacy, "SELECT id FROM memory_chunks WHERE id > 2 ORDER BY id")
    metadata = execute(legacy, "SELECT count(*) FROM memory_metadata WHERE chunk_id > 2")
    assert [chunk_id for (chunk_id,) in chunks] == writer.saved
    assert metadata == [(8 * len(writer.saved),)]


@contextmanager
def _open_transaction(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """Old code that has inserted a metadata row and does not commit yet."""
    with closing(plain_connection(connection)) as plain:
        plain.execute("INSERT INTO memory_metadata (chunk_id, key, value) VALUES (1, 'slow', '')")
        yield plain


@pytest.mark.parametrize("start", ["zero", "0001"], ids=["columns", "indexes"])
def test_a_long_transaction_makes_no_writer_wait_for_more_than_the_lock_timeout(
    legacy: BaseDatabaseWrapper, start: str
) -> None:
    """The columns ask for their lock in short attempts; the indexes need none that blocks."""
    if legacy.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time, who waits for its busy timeout")
    migrate("memory", start)
    migrated = threading.Event()

    def run() -> None:
        try:
            migrate("memory")
        finally:
            connections[ALIAS].close()
            migrated.set()

    migrating = threading.Thread(target=run)
    with OldWriter(legacy) as writer:
        with _open_transaction(legacy) as slow:
            migrating.start()
            if start == "zero":
                _until(lambda: writer.slowest_seconds > 0.5)
            else:
                _until(lambda: "metadata_conversation_chunk" in _being_built(legacy))
            writer.wait_for(5)
            assert not migrated.is_set()
            slow.commit()
        _until(migrated.is_set)
        migrating.join()
    assert writer.slowest_seconds < 5
    assert _indexes(legacy, "memory_metadata") == METADATA_INDEXES


def _being_built(connection: BaseDatabaseWrapper) -> set[str]:
    """Return the indexes that PostgreSQL has registered and not finished."""
    found = execute(
        connection, "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    )
    return {name for (name,) in found}


def test_a_lock_that_is_never_given_fails_with_what_to_do_and_changes_nothing(
    legacy: BaseDatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    if legacy.vendor != "postgresql":
        pytest.skip("only PostgreSQL locks tables")
    from importlib import import_module

    migration = import_module("memory.migrations.0001_adopt_or_create_memory_tables")
    monkeypatch.setattr(migration, "LOCK_ATTEMPTS", 1)
    with _open_transaction(legacy), pytest.raises(OperationalError) as raised:
        migrate()
    assert raised.value.__notes__ == [
        "Some transaction holds a lock on memory_metadata: end it, then migrate again."
    ]
    assert set(columns_of(legacy, "memory_metadata")) == {"id", "chunk_id", "key", "value"}
    assert "memory_context_items" not in our_tables(legacy)
    migrate()
    assert "memory_context_items" in our_tables(legacy)


def test_fresh_tables_and_adopted_tables_have_the_same_columns_and_constraints(
    empty: BaseDatabaseWrapper,
) -> None:
    migrate()
    fresh = {table: _described(empty, table) for table in OWNED}
    migrate("memory", "zero")
    migrate("conversations", "zero")
    for table in reversed(OWNED):
        execute(empty, f"DROP TABLE {table}")
    create_legacy_tables(empty)
    migrate()
    assert {table: _described(empty, table) for table in OWNED} == fresh


def _described(connection: BaseDatabaseWrapper, table: str) -> dict[str, Any]:
    """Return the names, order and nullability of columns, and the named constraints."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table)
    columns = columns_of(connection, table)
    return {
        # old code's `key` takes NULL, ours does not need to
        "columns": {
            name: column.nullable for name, column in columns.items() if name not in ("id", "key")
        },
        "indexes": {
            name: facts["columns"] for name, facts in found.items() if name in METADATA_INDEXES
        },
        "has_check": table == "memory_metadata" and has_check(connection),
        "foreign_keys": {
            facts["columns"][0]: facts["foreign_key"][0]
            for facts in found.values()
            if facts["foreign_key"]
        },
    }


def test_an_index_that_the_host_has_is_not_built_twice(scratch: BaseDatabaseWrapper) -> None:
    make_host(scratch, indexed=True)
    migrate()
    assert _indexes(scratch, "memory_chunks") == {"ix_memory_chunks_user_id", "chunk_by_time"}
    assert _indexes(scratch, "memory_metadata") == {
        "ix_memory_metadata_chunk_id",
        *(METADATA_INDEXES - {"metadata_by_chunk"}),
    }
    migrate("memory", "zero")
    assert _indexes(scratch, "memory_metadata") == {"ix_memory_metadata_chunk_id"}


def test_an_adopted_table_without_indexes_gets_ours(legacy: BaseDatabaseWrapper) -> None:
    migrate()
    assert _indexes(legacy, "memory_chunks") == {"chunk_by_user", "chunk_by_time"}
    assert _indexes(legacy, "memory_metadata") == METADATA_INDEXES


def test_an_index_that_an_interrupted_run_left_invalid_is_built_anew(
    legacy: BaseDatabaseWrapper,
) -> None:
    if legacy.vendor != "postgresql":
        pytest.skip("only PostgreSQL leaves invalid indexes behind")
    migrate("memory", "0001")
    execute(legacy, "CREATE INDEX metadata_by_chunk ON memory_metadata (value)")
    execute(
        legacy,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'metadata_by_chunk'::regclass",
    )
    migrate()
    with legacy.cursor() as cursor:
        found = legacy.introspection.get_constraints(cursor, "memory_metadata")
    assert found["metadata_by_chunk"]["columns"] == ["chunk_id"]


def test_adoption_on_postgresql_validates_no_row_and_checks_every_new_one(
    legacy: BaseDatabaseWrapper,
) -> None:
    if legacy.vendor != "postgresql":
        pytest.skip("SQLite has no NOT VALID")
    execute(legacy, "INSERT INTO memory_metadata (chunk_id, key, value) VALUES (NULL, 'odd', '')")
    migrate()
    assert execute(legacy, "SELECT count(*) FROM memory_metadata WHERE chunk_id IS NULL") == [(1,)]
    assert execute(
        legacy, "SELECT convalidated FROM pg_constraint WHERE conname = 'metadata_one_target'"
    ) == [(False,)]
    with pytest.raises(Exception, match="metadata_one_target"):
        execute(legacy, "INSERT INTO memory_metadata (chunk_id, key) VALUES (NULL, 'odd')")


def test_backwards_keeps_adopted_tables_and_every_legacy_row(legacy: BaseDatabaseWrapper) -> None:
    before = legacy_rows(legacy)
    migrate()
    migrate("memory", "zero")
    migrate("conversations", "zero")
    assert our_tables(legacy) == set(OWNED)
    assert legacy_rows(legacy) == before
    assert list(columns_of(legacy, "memory_metadata")) == ["id", "chunk_id", "key", "value"]
    old_save(legacy, "c-1", 1, saved_state(3), START + timedelta(days=1))
    migrate()
    assert old_load(legacy, "c-1") == saved_state(3)
    assert legacy_rows(legacy)["metadata"][:16] == before["metadata"]


def test_backwards_keeps_tables_that_we_created_and_their_chunks(
    scratch: BaseDatabaseWrapper,
) -> None:
    migrate()
    old_save(scratch, "c-2", None, saved_state(1), START)
    before = legacy_rows(scratch)
    migrate("memory", "zero")
    migrate("conversations", "zero")
    assert our_tables(scratch) == set(OWNED)
    assert legacy_rows(scratch) == before
    migrate()
    assert legacy_rows(scratch) == before
    assert old_load(scratch, "c-2") == saved_state(1)


def test_backwards_removes_metadata_of_rows_that_it_drops(scratch: BaseDatabaseWrapper) -> None:
    migrate()
    old_save(scratch, "c-2", None, saved_state(1), START)
    execute(
        scratch,
        "INSERT INTO conversation_tombstones (conversation_id, deleted_at, reason)"
        " VALUES ('gone', %s, '')",
        [START],
    )
    _insert_conversation(scratch)
    execute(
        scratch,
        "INSERT INTO memory_metadata (key, value, conversation_id)"
        " SELECT 'topic', 'tea', id FROM conversation_states",
    )
    migrate("memory", "zero")
    assert execute(scratch, "SELECT count(*) FROM memory_metadata") == [(8,)]
    migrate()
    assert execute(scratch, "SELECT count(*) FROM memory_metadata") == [(8,)]


def _insert_conversation(connection: BaseDatabaseWrapper) -> None:
    from conversations.models import ConversationState

    ConversationState.rows.using(connection.alias).create(
        conversation_id="c-2",
        messages_digest=bytes(16),
        state_digest=bytes(32),
        created_at=START,
        updated_at=START,
    )


def test_conversations_migrates_backwards_and_forwards(scratch: BaseDatabaseWrapper) -> None:
    migrate()
    _insert_conversation(scratch)
    everything = our_tables(scratch)
    for _ in range(2):
        migrate("conversations", "zero")
        assert our_tables(scratch) == set(OWNED)
        migrate()
        assert our_tables(scratch) == everything
    assert execute(scratch, "SELECT count(*) FROM conversation_states") == [(0,)]


def test_first_migrations_are_not_named_0001_initial(scratch: BaseDatabaseWrapper) -> None:
    """Another app of our label may have recorded that name; ours would be skipped silently."""
    from django.db.migrations.recorder import MigrationRecorder

    recorder = MigrationRecorder(scratch)
    recorder.ensure_schema()
    for label in ("conversations", "memory"):
        recorder.record_applied(label, "0001_initial")
    migrate()
    assert {"conversation_states", "memory_context_items"} <= our_tables(scratch)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", check=True, dry_run=True, stdout=StringIO())
