"""Legacy tables of other shapes: those that fit are adopted, the others refused."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db.backends.base.base import BaseDatabaseWrapper

from memory.adoption import TARGET_COLUMNS, columns_of
from memory.models import MemoryChunk
from tests.support.adopted import OWNED, START, our_tables, saved_state
from tests.support.legacy_schema import create_legacy_tables, execute, old_load, old_save
from tests.support.scratch import ALIAS, migrate

CHUNKS = "CREATE TABLE memory_chunks ({id}, user_id integer, content {text}, embedding json, {at})"

METADATA = "CREATE TABLE memory_metadata ({id}, chunk_id integer, key varchar, value varchar)"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE memory_chunks ({id}, title text)"], "memory_chunks has no column user_id"),
        ([CHUNKS.replace("{text}", "integer")], "memory_chunks.content is integer"),
        ([CHUNKS.replace("embedding json, ", "")], "memory_chunks has no column embedding"),
        ([CHUNKS.replace("{id}", "id bigint PRIMARY KEY")], "memory_chunks.id has no default"),
        ([CHUNKS.replace("{at}", "{at}, tenant integer NOT NULL")], "tenant is NOT NULL"),
        ([CHUNKS.replace("user_id integer", "user_id text")], "memory_chunks.user_id is text"),
        (
            [METADATA.replace("chunk_id integer", "chunk_id integer NOT NULL")],
            "chunk_id is NOT NULL",
        ),
        ([METADATA.replace("value varchar", "conversation_id text")], "no column value"),
        (["CREATE VIEW memory_metadata AS SELECT 1 AS id"], "memory_metadata is no plain table"),
        (
            [METADATA.replace("value varchar", "value varchar, context_item_id varchar")],
            "memory_metadata.context_item_id is",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_changes(
    scratch: BaseDatabaseWrapper, statements: list[str], message: str
) -> None:
    is_postgresql = scratch.vendor == "postgresql"
    parts = {
        "id": "id serial PRIMARY KEY" if is_postgresql else "id integer PRIMARY KEY",
        "text": "text",
        "at": "created_at timestamp with time zone",
    }
    for statement in statements:
        execute(scratch, statement.format(**parts))
    present = {table: columns_of(scratch, table) for table in OWNED}
    with pytest.raises(ImproperlyConfigured, match="nothing was changed") as raised:
        call_command("migrate", database=ALIAS, verbosity=0, skip_checks=True)
    assert message in str(raised.value)
    assert {table: columns_of(scratch, table) for table in OWNED} == present
    assert "memory_context_items" not in our_tables(scratch)


def test_a_timestamp_without_time_zone_is_refused(scratch: BaseDatabaseWrapper) -> None:
    if scratch.vendor != "postgresql":
        pytest.skip("SQLite stores the text it is given")
    create_legacy_tables(scratch)
    execute(scratch, "ALTER TABLE memory_chunks ALTER created_at TYPE timestamp")
    with pytest.raises(ImproperlyConfigured, match="one timestamp with time zone"):
        call_command("migrate", database=ALIAS, verbosity=0, skip_checks=True)


def test_metadata_of_nothing_is_refused_where_it_cannot_be_adopted(
    legacy: BaseDatabaseWrapper,
) -> None:
    if legacy.vendor != "sqlite":
        pytest.skip("PostgreSQL adopts it: the CHECK is NOT VALID")
    execute(legacy, "INSERT INTO memory_metadata (chunk_id, key, value) VALUES (NULL, 'odd', '')")
    with pytest.raises(ImproperlyConfigured, match="1 rows without a chunk_id"):
        call_command("migrate", database=ALIAS, verbosity=0, skip_checks=True)


def test_other_types_are_adopted_as_they_are(scratch: BaseDatabaseWrapper) -> None:
    """64-bit ids, lengths, defaults, an extra column, no foreign keys at all."""
    is_postgresql = scratch.vendor == "postgresql"
    key = "bigserial PRIMARY KEY" if is_postgresql else "integer PRIMARY KEY AUTOINCREMENT"
    execute(
        scratch,
        f"CREATE TABLE memory_chunks (id {key}, user_id integer, content text NOT NULL,"
        " embedding text, created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,"
        " tenant varchar(20) NOT NULL DEFAULT 'main')",
    )
    execute(
        scratch,
        f"CREATE TABLE memory_metadata (id {key}, chunk_id bigint, key varchar(100) NOT NULL,"
        " value text)",
    )
    old_save(scratch, "c-3", 99, saved_state(1), START)
    before = {table: columns_of(scratch, table) for table in OWNED}
    migrate()
    after = {table: columns_of(scratch, table) for table in OWNED}
    for column in TARGET_COLUMNS:
        del after["memory_metadata"][column]
    assert after == before
    assert old_load(scratch, "c-3") == saved_state(1)


def test_a_chunk_is_read_with_any_type_of_embedding(legacy: BaseDatabaseWrapper) -> None:
    """psycopg parses a column of type json by itself; Django's JSONField would fail on that."""
    migrate()
    execute(legacy, "UPDATE memory_chunks SET embedding = '[0.5, 1]' WHERE id = 1")
    chunks = MemoryChunk.objects.using(ALIAS).order_by("pk")
    assert [chunk.embedding for chunk in chunks] == [[0.5, 1], None]
    if legacy.vendor == "postgresql":
        execute(legacy, "ALTER TABLE memory_chunks ALTER embedding TYPE text")
        execute(legacy, "UPDATE memory_chunks SET embedding = 'no JSON' WHERE id = 2")
        assert [chunk.embedding for chunk in chunks.all()] == [[0.5, 1], "no JSON"]
