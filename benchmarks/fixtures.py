"""What stands beside the conversations of a population: legacy's marks, metadata, records, runs.

Loads and saves read none of these rows but the redactions, of texts that nobody has said.
"""

from __future__ import annotations

from typing import Any

from django.db import connection

from conversations.content.codec import MESSAGE_COLUMNS

# Of the numbers modulo 4: whose first message was edited.
EDITED = 3
_RUNS = 10

# Which of the conversations: of an even number, of an odd one, of those that were edited.
_AMONG = "state.id BETWEEN %(first)s AND %(last)s AND (state.id - %(first)s) %% "
_EVEN, _ODD, _EDITED = f"{_AMONG}2 = 0", f"{_AMONG}2 = 1", f"{_AMONG}4 = {EDITED}"
_OF_EDITED = f"(SELECT state.id FROM conversation_states state WHERE {_EDITED})"
_COPIED = ", ".join(("conversation_id", "sequence", *MESSAGE_COLUMNS, "digest", "timestamp"))
_CHANGES = (
    # An even conversation stands in legacy too, as the second of its chunks.
    "UPDATE conversation_states AS state SET legacy_revision = 1, verified_revision = revision,"
    " legacy_token = CAST(%(chunk)s + 2 * (id - %(first)s) + 1 AS text) WHERE " + _EVEN,
    f"UPDATE conversation_states AS state SET redaction_count = 1 WHERE {_ODD}",
    f"UPDATE conversation_states AS state SET revision = 2 WHERE {_EDITED} AND message_count > 0",
    "UPDATE conversation_messages SET added_in = 2"
    f" WHERE sequence = 1 AND superseded_in IS NULL AND conversation_id IN {_OF_EDITED}",
    f"INSERT INTO conversation_messages ({_COPIED}, added_in, superseded_in, superseded_at)"
    f" SELECT {_COPIED}, 1, 2, timestamp FROM conversation_messages"
    f" WHERE sequence = 1 AND conversation_id IN {_OF_EDITED}",
)
_FIRST = "{0} ON {0}.conversation_id = state.id AND {0}.sequence = 1 AND {0}.superseded_in IS NULL"
# Into a table, of each such conversation. Ten thousand messages are to give each list two full
# pages, as a million do.
_BESIDE = (
    ("conversation_conflicts (conversation_id, kind, reason, revision, detail, created_at)",
     "state.id, CASE WHEN state.id %% 4 > 1 THEN 'quarantined' ELSE 'merged' END,"
     " 'of a population', state.revision, '{}', state.updated_at", "", _ODD),
    ("conversation_redactions (conversation_id, text_hash, replacement, created_at)",
     "state.id, %(hash)s, 'redacted', state.updated_at", "", _ODD),
    ("conversation_mismatches"
     " (conversation_id, seen_at, phase, revision, places, tables_hash, legacy_hash)",
     "state.conversation_id, state.updated_at, 1, 1, '[\"messages[0]\"]', 'a', 'b'", "", _ODD),
    ("conversation_tombstones (conversation_id, deleted_at, reason)",
     "'deleted-' || state.conversation_id, state.updated_at, 'deleted'", "", _EVEN),
    ('memory_metadata (conversation_id, "key", value)', "state.id, 'channel', 'web'", "", _ODD),
    ('memory_metadata (message_id, "key", value)', "message.id, 'language', 'en'",
     "JOIN conversation_messages " + _FIRST.format("message"), _ODD),
    ('memory_metadata (context_item_id, "key", value)', "item.id, 'origin', 'import'",
     "JOIN memory_context_items " + _FIRST.format("item"), _ODD),
    ("sync_batches (run_id, stage, low, high, generation, conversations, counts, noted, failed,"
     " taken_at, finished_at)",
     "(SELECT max(id) FROM sync_runs) - state.id %% %(runs)s, 0, CAST(state.id AS text),"
     " CAST(state.id + 3 AS text), 1, 4, '{}', '[]', 0, state.updated_at, state.updated_at",
     "", _EVEN),
    ("rollout_measures (began_at, operation, store, count, errors, fallbacks, stale, mismatches,"
     " seconds, cells)", "state.updated_at, 'load', 'tables', 1, 0, 0, 0, 0, 0.1, ''", "", _EVEN),
)  # fmt: skip
# What an operator or a server makes is as much at any number of conversations.
_RUN = """INSERT INTO sync_runs (target, state, stage, cursor, upper, mark, batch_size, reason,
        waiting, started_at, finished_at)
    SELECT 'tables', 'finished', 0, '0', '0', '0', 4, '', '', state.updated_at, state.updated_at
    FROM conversation_states state WHERE state.id = %(first)s"""
_STEP = """INSERT INTO rollout_transitions
        (at, kind, from_phase, to_phase, actor, reason, switches, canary, gates)
    SELECT state.updated_at, 'advance', %(phase)s, %(phase)s + 1, 'an operator', '', '{}', 100,
        '[]' FROM conversation_states state WHERE state.id = %(first)s"""
_PROCESS = """INSERT INTO rollout_processes (token, host, pid, version, phase, epoch, seen_at)
    SELECT %(token)s, 'host', %(pid)s, '1', 4, (SELECT max(id) FROM rollout_transitions),
        state.updated_at FROM conversation_states state WHERE state.id = %(first)s"""


def fill(first: int, count: int, chunk: int, *, prefix: str) -> None:
    """Write what stands beside the conversations of the primary keys from `first` on.

    `chunk` is the primary key of the first one's first chunk; each has two.
    """
    known: dict[str, Any] = {"first": first, "last": first + count - 1, "chunk": chunk}
    known |= {"hash": bytes(32), "runs": _RUNS}
    with connection.cursor() as cursor:
        for statement in (*[_RUN] * _RUNS, *_CHANGES):
            cursor.execute(statement, known)
        for phase in range(4):
            cursor.execute(_STEP, {**known, "phase": phase})
        for pid in range(8):
            cursor.execute(_PROCESS, {**known, "pid": pid, "token": f"{prefix[:16]}{pid}"})
        for table, values, joined, chosen in _BESIDE:
            cursor.execute(
                f"INSERT INTO {table} SELECT {values} FROM conversation_states state {joined}"
                f" WHERE {chosen} ON CONFLICT DO NOTHING",
                known,
            )
