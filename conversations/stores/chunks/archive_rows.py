"""The state blobs of the chunk tables, of any writer: counted, read, removed, put back.

They are read by primary key, page by page, so that 40 GB of them need only a few megabytes of
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import OperationalError, connections

from conversations import conf
from conversations.exceptions import UnreadableState
from conversations.stores.chunks.format import CONVERSATION_ID, RESTORED_MARK, REVISION_MARK
from conversations.stores.sql.cursors import cannot_be_read
from memory.adoption import CHUNKS, METADATA, columns_of
from memory.models import MemoryChunk, MemoryMetadata

PAGE = 500
# How many bytes of content are read at once: a page of blobs may have gigabytes.
READ_BYTES = 4 * 2**20
_OURS = "store."
# How many chunks an error names.
_MOST_NAMED = 20

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Blob:
    """One state blob: its key, the bytes of its content, and how many metadata rows it has.

    `named` says whether it names a conversation; otherwise it belongs to none. `buried`: it is a
    late write of a deleted conversation.
    """

    key: int
    size: int
    metadata_rows: int
    named: bool
    buried: bool


def blobs() -> Iterator[Blob]:
    """Yield every state blob, by key, and no other type of chunk."""
    connection = connections[conf.alias()]
    size = "OCTET_LENGTH(chunk.content)"
    if connection.vendor == "sqlite":
        size = "LENGTH(CAST(chunk.content AS BLOB))"
    last = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_PAGE.format(size=size), [last, PAGE])
            page = cursor.fetchall()
        for key, bytes_of_it, rows, named, buried in page:
            yield Blob(key, bytes_of_it or 0, rows, bool(named), bool(buried))
        if len(page) < PAGE:
            return
        last = page[-1][0]


_NAMED = f"""FROM memory_metadata named {{joined}}
    WHERE named.chunk_id = chunk.id AND named."key" = '{CONVERSATION_ID}' AND named.value <> ''"""
_PAGE = f"""
    SELECT chunk.id, {{size}},
        (SELECT COUNT(*) FROM memory_metadata said WHERE said.chunk_id = chunk.id),
        EXISTS (SELECT 1 {_NAMED.format(joined="")}),
        EXISTS (SELECT 1 {
    _NAMED.format(
        joined="JOIN conversation_tombstones grave ON grave.conversation_id = named.value"
    )
})
    FROM memory_chunks chunk
    WHERE chunk.id > %s AND EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
    )
    ORDER BY chunk.id LIMIT %s"""


def contents(found: Iterator[Blob]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield the row of each blob and its metadata rows, in the order given.

    A row maps the columns that are not null to their values as text, including a host's own
    columns. A blob that was removed meanwhile is left out.
    """
    group: list[int] = []
    size = 0
    for blob in found:
        if group and (size + blob.size > READ_BYTES or len(group) >= PAGE):
            yield from _contents(group)
            group, size = [], 0
        group.append(blob.key)
        size += blob.size
    if group:
        yield from _contents(group)


def _contents(keys: Sequence[int]) -> Iterator[tuple[Row, list[Row]]]:
    said: dict[str, list[Row]] = {}
    chunks: list[Row] | None = None
    try:
        for row in _rows(METADATA, "chunk_id", keys):
            said.setdefault(row["chunk_id"], []).append(row)
        chunks = list(_rows(CHUNKS, "id", keys))
    except OperationalError as error:
        if not cannot_be_read(error):
            raise
    if chunks is None:
        # Raised here and not above: the error quotes the bytes, and would become the context.
        bad = _without_text(keys)
        names = ", ".join(map(str, bad[:_MOST_NAMED])) + (" …" if len(bad) > _MOST_NAMED else "")
        raise UnreadableState(
            f"legacy chunks {names} hold bytes that are no text: repair or remove them first."
        )
    for row in chunks:
        yield row, said.get(row["id"], [])


def _without_text(keys: Sequence[int]) -> list[int]:
    """Return those chunks that have a column which SQLite cannot read as text."""
    try:
        for table, column in ((METADATA, "chunk_id"), (CHUNKS, "id")):
            for _ in _rows(table, column, keys):
                pass
    except OperationalError:
        if len(keys) == 1:
            return list(keys)
        middle = len(keys) // 2
        return [*_without_text(keys[:middle]), *_without_text(keys[middle:])]
    return []


def _rows(table: str, column: str, keys: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of some chunks with every value as text: any column accepts text back."""
    connection = connections[conf.alias()]
    quoted = connection.ops.quote_name
    names = list(columns_of(connection, table))
    texts = ", ".join(f"CAST({quoted(name)} AS text)" for name in names)
    places = ", ".join(["%s"] * len(keys))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {texts} FROM {table} WHERE {column} IN ({places}) "
            # Qualified: the bare name would be the selected text.
            f" ORDER BY {table}.{column}, {table}.id",
            list(keys),
        )
        found = cursor.fetchall()
    for values in found:
        pairs = zip(names, values, strict=True)
        yield {name: str(value) for name, value in pairs if value is not None}


def keys_of(conversation_id: str) -> list[int]:
    """Return the keys of the state blobs of a conversation."""
    rows = _metadata().filter(key=CONVERSATION_ID, value=conversation_id)
    typed = _metadata().filter(key="type", value="state")
    named = rows.filter(chunk_id__in=typed.values("chunk_id"))
    return sorted(set(named.values_list("chunk_id", flat=True)))


def conversations_of_newest() -> set[str]:
    """Return the conversations that the newest of all chunks names, if it is a blob of any."""
    newest = MemoryChunk.objects.using(conf.alias()).order_by("-pk").values("pk")[:1]
    rows = _metadata().filter(chunk_id__in=list(newest.values_list("pk", flat=True)))
    return set(rows.filter(key=CONVERSATION_ID).values_list("value", flat=True))


def remove(keys: Sequence[int]) -> None:
    """Remove chunks and their metadata rows only."""
    for start in range(0, len(keys), PAGE):
        batch = keys[start : start + PAGE]
        _metadata().filter(chunk_id__in=batch)._raw_delete(conf.alias())
        MemoryChunk.objects.using(conf.alias()).filter(pk__in=batch)._raw_delete(conf.alias())


def restored_keys(conversation_id: str) -> set[str]:
    """Return the old keys of a conversation's blobs that were put back already."""
    keys = keys_of(conversation_id)
    rows = _metadata().filter(chunk_id__in=keys, key=RESTORED_MARK)
    return {str(value) for value in rows.values_list("value", flat=True)}


def put_back(chunk: Row, said: Sequence[Row], *, known: bool) -> None:
    """Insert a blob again, under its old key if that is free.

    `known` says that the tables hold its conversation: then the blob is marked, and is not taken
    for a new write of old code. Our own marks from before are dropped, since they mean nothing to
    the current rows.
    """
    taken = MemoryChunk.objects.using(conf.alias()).filter(pk=chunk["id"]).exists()
    key = _insert(CHUNKS, {n: v for n, v in chunk.items() if n != "id" or not taken})
    for row in said:
        if not row["key"].startswith(_OURS):
            _insert(METADATA, {n: v for n, v in row.items() if n != "id"} | {"chunk_id": str(key)})
    marks = {RESTORED_MARK: chunk["id"]} | ({REVISION_MARK: "0"} if known else {})
    _metadata().bulk_create(
        [MemoryMetadata(chunk_id=key, key=name, value=value) for name, value in marks.items()]
    )


def _insert(table: str, row: Mapping[str, str]) -> int:
    connection = connections[conf.alias()]
    names = ", ".join(connection.ops.quote_name(name) for name in row)
    places = ", ".join(["%s"] * len(row))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({names}) VALUES ({places}) RETURNING id", list(row.values())
        )
        return int(cursor.fetchone()[0])


def _metadata() -> Any:
    return MemoryMetadata.objects.using(conf.alias())
