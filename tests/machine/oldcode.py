"""Old code, as hosts run it: it reads a blob, prunes, adds, and writes the whole blob back."""

from __future__ import annotations

import json
from typing import Any

from django.db import connection

from tests.support.legacy_schema import old_load, old_save


class OldChunks:
    """Old code over memory_chunks: every write is a new blob, and the newest one is read."""

    settings: Any = "memory_chunks"
    # Whether an old write destroys what stood there. A new blob leaves the earlier ones.
    overwrites = False

    def read(self, conversation_id: str) -> dict[str, Any] | None:
        return old_load(connection, conversation_id)

    def write(
        self, conversation_id: str, state: dict[str, Any], *, owner: int | None = None
    ) -> None:
        old_save(connection, conversation_id, owner, state, keep=None)


class OldSession:
    """Old code over a host's own table: one row, overwritten."""

    settings: Any = {
        "model": "blobs.TextSession",
        "conversation_id": "session_key",
        "owner": "owner",
        "state": "payload",
    }
    overwrites = True

    def read(self, conversation_id: str) -> dict[str, Any] | None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT payload FROM blobs_textsession WHERE session_key = %s", [conversation_id]
            )
            row = cursor.fetchone()
        return json.loads(row[0]) if row else None

    def write(
        self, conversation_id: str, state: dict[str, Any], *, owner: int | None = None
    ) -> None:
        text = json.dumps(state)
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE blobs_textsession SET payload = %s WHERE session_key = %s",
                [text, conversation_id],
            )
            if not cursor.rowcount:
                cursor.execute(
                    "INSERT INTO blobs_textsession (session_key, payload, owner_id)"
                    " VALUES (%s, %s, %s)",
                    [conversation_id, text, owner],
                )


class OldEntries(OldSession):
    """Old code over a host's own table to which every write adds a row."""

    settings: Any = OldSession.settings | {"model": "hostshapes.Entry", "newest_by": "id"}
    overwrites = False

    def read(self, conversation_id: str) -> dict[str, Any] | None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT payload FROM hostshapes_entry WHERE session_key = %s"
                " ORDER BY id DESC LIMIT 1",
                [conversation_id],
            )
            row = cursor.fetchone()
        return json.loads(row[0]) if row else None

    def write(
        self, conversation_id: str, state: dict[str, Any], *, owner: int | None = None
    ) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO hostshapes_entry (session_key, payload, owner_id) VALUES (%s, %s, %s)",
                [conversation_id, json.dumps(state), owner],
            )
