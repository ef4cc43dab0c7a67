"""Old code, as the base of the comparison: its statements as bare SQL, each with its own commit.

It takes no lock, keeps no order of writers and checks nothing. Two costs of old code are left out
here: its ORM, and the pruning that lost messages.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from django.db import connection

from conversations.state import AgentState

_NEWEST = """
    SELECT c.content FROM memory_chunks c
    JOIN memory_metadata named ON named.chunk_id = c.id
        AND named.key = 'conversation_id' AND named.value = %s
    JOIN memory_metadata typed ON typed.chunk_id = c.id
        AND typed.key = 'type' AND typed.value = 'state'
    ORDER BY c.created_at DESC LIMIT 1
"""
_CHUNK = "INSERT INTO memory_chunks (user_id, content, created_at) VALUES (%s, %s, %s) RETURNING id"
_METADATA = "INSERT INTO memory_metadata (chunk_id, key, value) VALUES (%s, %s, %s)"


def old_load(conversation_id: str) -> AgentState:
    """Load a state as old code does: the newest chunk; an empty state if there is none."""
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, [conversation_id])
        found = cursor.fetchone()
    return AgentState.from_dict(json.loads(found[0])) if found else AgentState()


def old_save(conversation_id: str, state: AgentState, owner: Any) -> None:
    """Save a state as old code does: a chunk, then eight metadata rows, nine commits."""
    now = datetime.now(UTC)
    stamp = now if connection.vendor == "postgresql" else now.strftime("%Y-%m-%d %H:%M:%S.%f")
    data = state.to_dict()
    messages, items = str(len(state.conversation_history)), str(len(state.memory_context))
    rows = {
        "conversation_id": conversation_id,
        "type": "state",
        "last_updated": now.isoformat(),
        "optimization_applied": "true",
        "original_conversation_length": messages,
        "optimized_conversation_length": messages,
        "original_context_length": items,
        "optimized_context_length": items,
    }
    with connection.cursor() as cursor:
        cursor.execute(_CHUNK, [owner, json.dumps(data), stamp])
        chunk = cursor.fetchone()[0]
        for key, value in rows.items():
            cursor.execute(_METADATA, [chunk, key, value])
