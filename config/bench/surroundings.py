"""What stands beside the conversations of a population: metadata, records, runs and measures.

Loads and saves read none of these rows but the redactions, of texts that nobody has said.
"""

from __future__ import annotations

from typing import Any

from django.db import connection

# Of the numbers modulo 4: whose first message was edited.
EDITED = 3
_RUNS = 10

# For even or odd numbers, and what is inserted for each of them. Ten thousand messages are to give
# each list two full pages, as a million do.
_EVEN, _ODD = 0, 1
_EVERY_OTHER = "state.id BETWEEN %(first)s AND %(last)s AND (state.id - %(first)s) %% 2 = {kind}"
_STATEMENTS = (
    (
        _ODD,
        """INSERT INTO conversation_conflicts
            (conversation_id, kind, reason, revision, detail, created_at)
        SELECT state.id,
            CASE WHEN (state.id - %(first)s) %% 4 = 1 THEN 'quarantined' ELSE 'merged' END,
            'of a population', state.revision, '{{}}', state.updated_at
        FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _ODD,
        """INSERT INTO conversation_redactions
            (conversation_id, text_hash, replacement, created_at)
        SELECT state.id, %(hash)s, 'redacted', state.updated_at
        FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _ODD,
        """INSERT INTO conversation_mismatches
            (conversation_id, seen_at, phase, revision, places, tables_hash, legacy_hash)
        SELECT state.conversation_id, state.updated_at, 1, 1, '["messages[0]"]', 'a', 'b'
        FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _EVEN,
        """INSERT INTO conversation_tombstones (conversation_id, deleted_at, reason)
        SELECT 'deleted-' || state.conversation_id, state.updated_at, 'deleted'
        FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _ODD,
        """INSERT INTO memory_metadata (conversation_id, "key", value)
        SELECT state.id, 'channel', 'web' FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _ODD,
        """INSERT INTO memory_metadata (message_id, "key", value)
        SELECT message.id, 'language', 'en' FROM conversation_states state
        JOIN conversation_messages message ON message.conversation_id = state.id
        WHERE message.sequence = 1 AND message.superseded_in IS NULL AND {chosen}""",
    ),
    (
        _ODD,
        """INSERT INTO memory_metadata (context_item_id, "key", value)
        SELECT item.id, 'origin', 'import' FROM conversation_states state
        JOIN memory_context_items item ON item.conversation_id = state.id
        WHERE item.sequence = 1 AND item.superseded_in IS NULL AND {chosen}""",
    ),
    (
        _EVEN,
        """INSERT INTO sync_batches (run_id, stage, low, high, generation, conversations, counts,
            noted, failed, taken_at, finished_at)
        SELECT (SELECT max(id) FROM sync_runs) - state.id %% %(runs)s, 0, CAST(state.id AS text),
            CAST(state.id + 3 AS text), 1, 4, '{{}}', '[]', 0, state.updated_at, state.updated_at
        FROM conversation_states state WHERE {chosen}""",
    ),
    (
        _EVEN,
        """INSERT INTO rollout_measures (began_at, operation, store, count, errors, fallbacks,
            stale, mismatches, seconds, cells)
        SELECT state.updated_at, 'load', 'normalized', 1, 0, 0, 0, 0, 0.1, ''
        FROM conversation_states state WHERE {chosen} ON CONFLICT DO NOTHING""",
    ),
)
# What an operator or a server makes is as much at any number of conversations.
_RUN = """INSERT INTO sync_runs (target, state, stage, cursor, upper, mark, batch_size, reason,
        waiting, started_at, finished_at)
    SELECT 'tables', 'finished', 0, '0', '0', '0', 4, '', '', state.updated_at, state.updated_at
    FROM conversation_states state WHERE state.id = %(first)s"""
_STEP = """INSERT INTO rollout_transitions
        (at, kind, from_phase, to_phase, actor, reason, switches, canary, gates)
    SELECT state.updated_at, 'advance', %(before)s, %(after)s, 'an operator', '', '{}', 100, '[]'
    FROM conversation_states state WHERE state.id = %(first)s"""
_PROCESS = """INSERT INTO rollout_processes (token, host, pid, version, phase, epoch, seen_at)
    SELECT %(token)s, 'host', %(pid)s, '1', 4, (SELECT max(id) FROM rollout_transitions),
        state.updated_at FROM conversation_states state WHERE state.id = %(first)s"""


def fill(first: int, count: int, *, prefix: str) -> None:
    """Write what stands beside the conversations of the primary keys from `first` on."""
    known: dict[str, Any] = {"first": first, "last": first + count - 1}
    known |= {"hash": bytes(32), "runs": _RUNS}
    with connection.cursor() as cursor:
        for _ in range(_RUNS):
            cursor.execute(_RUN, known)
        for phase in (0, 1, 2, 3):
            cursor.execute(_STEP, {**known, "before": phase, "after": phase + 1})
        for pid in range(8):
            cursor.execute(_PROCESS, {**known, "pid": pid, "token": f"{prefix[:16]}{pid}"})
        for kind, statement in _STATEMENTS:
            chosen = _EVERY_OTHER.format(kind=kind)
            cursor.execute(statement.format(chosen=chosen), known)
