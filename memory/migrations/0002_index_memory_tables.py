"""Index memory_chunks and memory_metadata.

Why: to find the blobs of a conversation and of a user, and the latest blobs, and to keep one value
per key. How long: on PostgreSQL minutes for many millions of rows, but concurrently, so writers go
on (set no statement_timeout). On SQLite seconds, and writers wait. An index that the host has
already is not built twice. If a run is interrupted, run it again: it rebuilds an invalid index.
Reversible: yes, the reverse drops the indexes named here and no others.
"""

from django.db import migrations, models
from django.db.models import Q

# Plain indexes that any index of the host with the same first column replaces.
REPLACEABLE = {
    "chunk_by_user": "user_id",
    "chunk_by_time": "created_at",
    "metadata_by_chunk": "chunk_id",
}

_IS_VALID = """
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = %s AND pg_table_is_visible(c.oid)
"""
_FIRST_COLUMNS = """
    SELECT a.attname FROM pg_index i
    JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE t.relname = %s AND pg_table_is_visible(t.oid)
          AND m.amname = 'btree' AND i.indpred IS NULL AND i.indisvalid
"""
_SQLITE_FIRST_COLUMNS = """
    SELECT c.name FROM pragma_index_list(%s) i, pragma_index_info(i.name) c
    WHERE c.seqno = 0 AND NOT i.partial
"""


def build_indexes(apps, schema_editor):
    """Build every missing index."""
    for model, index in indexes_of(apps):
        table = model._meta.db_table
        if is_built(schema_editor, index.name):
            continue
        if REPLACEABLE.get(index.name) in first_columns(schema_editor, table):
            continue
        drop(schema_editor, index.name)
        statement = str(index.create_sql(model, schema_editor))
        schema_editor.execute(concurrently(schema_editor, statement), params=None)


def drop_indexes(apps, schema_editor):
    """Drop the indexes that `build_indexes` built."""
    for _, index in indexes_of(apps):
        drop(schema_editor, index.name)


def indexes_of(apps):
    """Yield the indexes of both tables; a partial unique constraint is an index too."""
    for name in ("MemoryChunk", "MemoryMetadata"):
        model = apps.get_model("memory", name)
        for index in [*model._meta.indexes, *model._meta.constraints]:
            if not isinstance(index, models.CheckConstraint):
                yield model, index


def is_built(schema_editor, name):
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_IS_VALID, [name])
            return cursor.fetchone() == (True,)
        cursor.execute("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = %s", [name])
        return cursor.fetchone() is not None


def first_columns(schema_editor, table):
    """Return the first columns of the table's indexes that are not partial."""
    connection = schema_editor.connection
    is_postgresql = connection.vendor == "postgresql"
    with connection.cursor() as cursor:
        cursor.execute(_FIRST_COLUMNS if is_postgresql else _SQLITE_FIRST_COLUMNS, [table])
        return {column for (column,) in cursor.fetchall()}


def drop(schema_editor, name):
    statement = concurrently(schema_editor, "DROP INDEX")
    schema_editor.execute(f'{statement} IF EXISTS "{name}"')


def concurrently(schema_editor, statement):
    """Return the statement with CONCURRENTLY, unless the caller's transaction forbids it."""
    connection = schema_editor.connection
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        return statement
    return statement.replace(" INDEX", " INDEX CONCURRENTLY", 1)


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("memory", "0001_adopt_or_create_memory_tables")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddIndex(
                    "MemoryChunk", models.Index(fields=["user"], name="chunk_by_user")
                ),
                migrations.AddIndex(
                    "MemoryChunk", models.Index(fields=["created_at"], name="chunk_by_time")
                ),
                migrations.AddIndex(
                    "MemoryMetadata",
                    models.Index(
                        fields=["value", "chunk"],
                        name="metadata_conversation_chunk",
                        condition=Q(key="conversation_id"),
                    ),
                ),
                migrations.AddIndex(
                    "MemoryMetadata", models.Index(fields=["chunk"], name="metadata_by_chunk")
                ),
                migrations.AddConstraint(
                    "MemoryMetadata",
                    models.UniqueConstraint(
                        fields=["conversation", "key"],
                        condition=Q(conversation__isnull=False),
                        name="metadata_conversation_key",
                    ),
                ),
                migrations.AddConstraint(
                    "MemoryMetadata",
                    models.UniqueConstraint(
                        fields=["message", "key"],
                        condition=Q(message__isnull=False),
                        name="metadata_message_key",
                    ),
                ),
                migrations.AddConstraint(
                    "MemoryMetadata",
                    models.UniqueConstraint(
                        fields=["context_item", "key"],
                        condition=Q(context_item__isnull=False),
                        name="metadata_context_item_key",
                    ),
                ),
            ]
        ),
        migrations.RunPython(build_indexes, drop_indexes),
    ]
