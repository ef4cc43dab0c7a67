"""The settings of `conversations`: keys of `settings.CONVERSATIONS`, read lazily.

Every key is optional. `conversations.checks` validates them all.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.utils.module_loading import import_string

from flags.conf import conversations_settings, database_alias, read_once

__all__ = ["alias", "legacy", "require_owner", "state_class"]

MEMORY_CHUNKS = "memory_chunks"

DEFAULTS: dict[str, Any] = {
    # The store to migrate from: absent for a fresh team, "memory_chunks", or a mapping. A mapping
    # with "store", the dotted path of a LegacyStore, is given to that class; any other is of a
    # JSONFieldStore: it has the keys "model", "conversation_id", "state" and, optional,
    # "owner", "newest_by", "version" (a column the host changes with every write), "to_state" and
    # "from_state" (dotted paths of functions between the host's JSON and AgentState.to_dict()).
    "LEGACY": None,
    # The alias of the one database that holds every table.
    "DATABASE": "default",
    # The alias of a streaming replica of that database (PostgreSQL): load_state and list_messages
    # read from it if it is current. See conversations.routing.replicas. None: no replica.
    "REPLICA": None,
    # The switch values that hold while waffle has no rows; see flags.conf.default_switches.
    "SWITCHES": {},
    # The class load_state returns: from_dict(mapping), to_dict() and room for attributes.
    "STATE_CLASS": "conversations.state.AgentState",
    # Whether every call must name the user. Default: True without LEGACY, else False.
    "REQUIRE_OWNER": None,
    # Whether PostgreSQL keeps the plans of the statements of loads and saves, which halves their
    # time: True, False, or "auto" where the connection carries them (see stores.sql.prepared).
    # True behind PgBouncer in transaction mode fails, unless it supports prepared statements.
    "PREPARE_STATEMENTS": "auto",
    # Limits of accepted states, checked before any SQL.
    "MAX_DEPTH": 400,
    "MAX_MESSAGE_BYTES": 64 * 2**20,
    "MAX_STATE_BYTES": 256 * 2**20,
    # should_resume_conversation answers True within this time of the last activity.
    "RESUME_WITHIN": timedelta(hours=24),
    # How old a superseded message must be before `conversations prune` may remove it.
    "KEEP_SUPERSEDED": timedelta(days=30),
    # How many superseded versions of one message are kept at any age.
    "KEEP_VERSIONS": 20,
    # How many blobs of a conversation stay in memory_chunks: a save removes our blobs that this
    # many later ones have overtaken. None: all stay until retirement; see writing.trim.
    "KEEP_BLOBS": None,
    # The share of loads that are compared with the other store while both are written.
    "SHADOW_SHARE": 0.01,
    # How many of them must have agreed before loads come from the tables. For later steps: how
    # many operations must have been measured in the phase. 0 requires none.
    "SHADOW_READS": 100,
    # How long no other code may have written into legacy before loads come from the tables.
    "FOREIGN_QUIET": timedelta(hours=24),
    # 95 % of the operations must be this quick before loads come from the tables.
    "MAX_P95": timedelta(milliseconds=500),
    # How long a phase must have been in force before the next step after new_reads.
    "SOAK_TIME": timedelta(hours=24),
    # How long new_only must have been in force before legacy may be retired.
    "RETIRE_AFTER": timedelta(days=7),
    # When `rollout health` warns and is critical: {"MINIMUM": operations below which a share says
    # nothing, "WARNING": share of failures, "CRITICAL": share}; see flags.conf.Limits.
    "HEALTH": {"MINIMUM": 20, "WARNING": 0.01, "CRITICAL": 0.05},
    # Whether loads use the other store, if it is current, while too many loads of the preferred
    # one fail; see flags.breaker.
    "READ_BREAKER": False,
    # A sync and a verification wait while a replica is further behind than this (PostgreSQL; only
    # a role that may see other sessions sees it, such as a member of pg_monitor). They also wait
    # while live saves take this many times as long as in the hour before (see runs.throttle).
    "SYNC_MAX_REPLICA_LAG": timedelta(seconds=10),
    "SYNC_MAX_SLOWDOWN": 2.0,
    # No write of old code is in flight for longer than this (see stores.chunks).
    "LEGACY_SETTLES_WITHIN": timedelta(hours=1),
}


@read_once
def get(name: str) -> Any:
    """Return a setting, or its default."""
    value = conversations_settings().get(name)
    return DEFAULTS[name] if value is None else value


# The alias of the database that holds every table.
alias = database_alias


@read_once
def replica() -> str | None:
    """Return the alias of a replica to read from, None without one."""
    return get("REPLICA") or None


@read_once
def legacy() -> Any:
    """Return the store to migrate from: None, "memory_chunks" or a mapping."""
    return get("LEGACY") or None


@read_once
def require_owner() -> bool:
    """Return whether every call must name the user."""
    value = get("REQUIRE_OWNER")
    return legacy() is None if value is None else bool(value)


@read_once
def prepare_statements() -> Any:
    """Return whether statements are prepared: True, False or "auto"."""
    return get("PREPARE_STATEMENTS")


@read_once
def state_class() -> Any:
    """Return the class of the states that `load_state` returns."""
    return import_string(get("STATE_CLASS"))
