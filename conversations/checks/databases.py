"""Checks of the one database that holds every table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import NotSupportedError, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from conversations.checks.legacy import legacy_model
from conversations.rollout.statistics import TABLES, analysis_of, tables_without_statistics
from flags.checks import configured, database_check, valid_alias
from flags.schema import named
from flags.texts import quoted
from memory.checks import disagreements

VENDORS = ("postgresql", "sqlite")
OLDEST_POSTGRESQL = 14


@register("conversations")
def check_alias(**kwargs: Any) -> list[CheckMessage]:
    """Check the alias and its database."""
    alias = valid_alias()
    if alias is None:
        return [
            Error(
                f'CONVERSATIONS["DATABASE"] is {quoted(configured().get("DATABASE"))}, which is no'
                " alias of DATABASES.",
                hint=f"Use one of {', '.join(connections)}.",
                id="conversations.E009",
            )
        ]
    connection = connections[alias]
    if connection.vendor not in VENDORS:
        return [
            Error(
                f"The database {alias!r} is {connection.display_name}.",
                hint="Use PostgreSQL, or SQLite on a single machine.",
                id="conversations.E010",
            )
        ]
    return [*_routes(alias), *_sqlite_transactions(connection)]


def _routes(alias: str) -> Iterator[CheckMessage]:
    """Check that reads, writes and migrations of our models go to the one alias."""
    ours = [model for label in ("conversations", "memory") for model in _models_of(label)]
    beside = [get_user_model(), *_switch_models(), legacy_model()]
    elsewhere: dict[str, list[str]] = {}
    try:
        for model in filter(None, [*ours, *beside]):
            for used in {router.db_for_read(model), router.db_for_write(model)} - {alias}:
                elsewhere.setdefault(used, []).append(model._meta.label)
        unmigrated = [m._meta.label for m in ours if not router.allow_migrate_model(alias, m)]
    except Exception as error:  # noqa: BLE001  (a host's router may fail in any way)
        yield Error(
            f"A router of DATABASE_ROUTERS failed: {named(error)}.",
            hint="Make it answer for every model, or return None.",
            id="conversations.E011",
        )
        return
    for used, labels in sorted(elsewhere.items()):
        yield Error(
            f"{', '.join(labels)} are routed to {used!r}, but CONVERSATIONS uses {alias!r}.",
            hint='Let the router answer the alias of CONVERSATIONS["DATABASE"] for these models:'
            " one transaction holds all of them.",
            id="conversations.E011",
        )
    if unmigrated:
        yield Error(
            f"A router keeps {', '.join(unmigrated)} from being migrated on {alias!r}.",
            hint="Let allow_migrate answer True or None for conversations and memory.",
            id="conversations.E011",
        )


def _models_of(label: str) -> list[type[Model]]:
    return list(apps.get_app_config(label).get_models()) if apps.is_installed(label) else []


def _switch_models() -> list[type[Model]]:
    if not apps.is_installed("waffle"):
        return []
    from waffle import get_waffle_switch_model

    return [get_waffle_switch_model()]


def _sqlite_transactions(connection: Any) -> Iterator[CheckMessage]:
    if connection.vendor != "sqlite" or connection.is_in_memory_db():
        return
    mode = connection.settings_dict.get("OPTIONS", {}).get("transaction_mode")
    if str(mode).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield Warning(
            f"The SQLite database {connection.alias!r} does not begin transactions IMMEDIATE:"
            " two writers fail with `database is locked`, at any timeout.",
            hint='Add "OPTIONS": {"transaction_mode": "IMMEDIATE"} to its settings.',
            id="conversations.W001",
        )


@register("conversations", deploy=True)
def check_persistent_connections(**kwargs: Any) -> list[CheckMessage]:
    """Check that a connection is replaced after the server closed it."""
    alias = valid_alias()
    if alias is None or connections[alias].vendor != "postgresql":
        return []
    chosen = connections[alias].settings_dict
    if chosen.get("CONN_MAX_AGE") == 0 or chosen.get("CONN_HEALTH_CHECKS"):
        return []
    return [
        Warning(
            f"The database {alias!r} keeps connections (CONN_MAX_AGE) without CONN_HEALTH_CHECKS:"
            " after a restart of the server requests fail.",
            hint='Set "CONN_HEALTH_CHECKS": True.',
            id="conversations.W003",
        )
    ]


READ_COMMITTED = "READ_COMMITTED"


@database_check()
def check_server(connection: Any) -> Iterator[CheckMessage]:
    """Check version and encoding of PostgreSQL, and the journal of SQLite."""
    if connection.vendor == "postgresql":
        yield from _postgresql(connection)
    elif connection.vendor == "sqlite" and not connection.is_in_memory_db():
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode")
            mode = cursor.fetchone()[0]
        if mode != "wal":
            yield Warning(
                f"The SQLite database {connection.alias!r} has the journal mode {mode}: readers"
                " and the writer wait for each other.",
                hint='Add "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL"} to its settings.',
                id="conversations.W002",
            )


def _postgresql(connection: Any) -> Iterator[CheckMessage]:
    try:
        version = connection.pg_version // 10_000
    except NotSupportedError:  # what Django says to a server older than it supports
        version = None
    if version is None or version < OLDEST_POSTGRESQL:
        yield Error(
            f"The PostgreSQL server of {connection.alias!r} is older than {OLDEST_POSTGRESQL}"
            " or than Django supports.",
            hint="Upgrade the server.",
            id="conversations.E013",
        )
        return
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_encoding")
        encoding = cursor.fetchone()[0]
        cursor.execute("SHOW default_transaction_isolation")
        isolation = cursor.fetchone()[0]
    # After connecting, Django knows the choice in OPTIONS.
    chosen = getattr(getattr(connection, "isolation_level", None), "name", READ_COMMITTED)
    if isolation.upper().replace(" ", "_") != READ_COMMITTED or chosen != READ_COMMITTED:
        yield Error(
            f"The PostgreSQL database {connection.alias!r} does not use the isolation level READ"
            " COMMITTED: after waiting for a lock, a transaction would miss the latest writes.",
            hint='Take "isolation_level" out of its OPTIONS, and default_transaction_isolation'
            " out of the settings of the server, the database and the role.",
            id="conversations.E016",
        )
    if encoding != "UTF8":
        yield Error(
            f"The PostgreSQL database {connection.alias!r} has the encoding {encoding}: it cannot"
            " hold every text.",
            hint="Create a database with ENCODING 'UTF8' and move the data there.",
            id="conversations.E012",
        )


@database_check()
def check_recorded_migrations(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that the tables exist exactly when their migrations are recorded."""
    yield from disagreements(
        connection,
        "conversations",
        missing_id="conversations.E014",
        unrecorded_id="conversations.E015",
    )


@database_check()
def check_statistics(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that the database has statistics of its tables: after a restore it has none."""
    legacy = legacy_model()
    tables = [*TABLES, "memory_chunks", *([legacy._meta.db_table] if legacy else [])]
    missing = tables_without_statistics(connection, tables)
    if missing:
        yield Warning(
            f"The database has no statistics of {', '.join(missing)}: it may read them whole.",
            hint=f"Type in psql: {analysis_of(connection, missing)}",
            id="conversations.W006",
        )
