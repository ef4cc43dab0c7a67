"""Every system check, by its id: it fires on the misconfiguration and is silent without it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from importlib import metadata
from typing import Any

import pytest
from django.core.checks import CheckMessage, Tags, run_checks
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import ConnectionHandler
from django.test.utils import isolate_apps
from psycopg import IsolationLevel
from waffle.models import Switch as SwitchRow

from conversations.checks import (
    databases,
    installation,
    legacy,
    replicas,
    settings as settings_checks,
)
from conversations.conf import DEFAULTS
from conversations.storage import conversation_exists, delete_conversation, load_state
from conversations.stores.jsonfield import checks as mapping_checks
from flags import checks as flags_checks
from flags.phases import Phase, switches_for
from flags.switches import forced_phase
from memory import checks as memory_checks
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.blobs.models import TextSession
from tests.support.hostshapes.shapes import SHAPES
from tests.support.processes import ROOT
from tests.support.scratch import ALIAS, scratch_database

APPS = ("conversations", "memory", "flags")
# A host's model that happens to be installed: a unique name, an owner, a text.
MAPPING = {
    "model": "auth.User",
    "conversation_id": "username",
    "owner": "id",
    "state": "first_name",
}


class Plain:
    """A state class with room for everything."""

    @classmethod
    def from_dict(cls, data: Any) -> Plain:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {}


class Slotted(Plain):
    """A class whose instances have a __dict__, because Plain's have one."""

    __slots__ = ()


class Tight:
    """A class with no room for what a load remembers."""

    __slots__ = ("data",)
    from_dict = to_dict = classmethod(lambda cls, *args: {})


class Roomy:
    """A class that declares the room."""

    __slots__ = ("_baseline", "load_info")
    from_dict = to_dict = classmethod(lambda cls, *args: {})


def convert(value: Any) -> Any:
    """Stand in for a host's function."""
    return value


def found(messages: Iterable[CheckMessage], check_id: str) -> list[str]:
    """Return the texts of one check's messages; each must say what to do."""
    chosen = [message for message in messages if message.id == check_id]
    assert all(message.hint for message in chosen)
    return [message.msg for message in chosen]


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Set `CONVERSATIONS` to the given keys."""

    def set_to(**values: Any) -> None:
        settings.CONVERSATIONS = values

    set_to()
    return set_to


@pytest.fixture
def other_alias(configure: Any) -> Iterator[Callable[..., Any]]:
    """Make DATABASE an alias with the given settings, which nothing connects to."""

    def make(engine: str, **values: Any) -> Any:
        chosen = {"ENGINE": f"django.db.backends.{engine}", "NAME": "nowhere", **values}
        handler = ConnectionHandler({DEFAULT_DB_ALIAS: {}, "other": chosen})
        connections.databases["other"] = handler.settings["other"]
        configure(DATABASE="other")
        return connections["other"]

    yield make
    if "other" in connections.databases:
        del connections["other"]
        del connections.databases["other"]


@pytest.fixture
def scratch(tmp_path: Any, django_db_blocker: Any, configure: Any) -> Iterator[Any]:
    """An empty database as the configured one."""
    configure(DATABASE=ALIAS)
    with django_db_blocker.unblock(), scratch_database(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("chunks", "is 'chunks'"),
        (["memory_chunks"], "is a list of 1"),
        ({"model": "auth.User"}, "lacks conversation_id, state"),
        ({**MAPPING, "stat": "x"}, "has unknown keys: stat"),
        ({**MAPPING, "state": 5}, "has values that are no names: state"),
        ({**MAPPING, "owner": ""}, "has values that are no names: owner"),
        ({**MAPPING, "owner": ["username"]}, "has values that are no names: owner"),
        ({**MAPPING, "conversation_id": []}, "has values that are no names: conversation_id"),
        (
            {**MAPPING, "conversation_id": ["id", "id"]},
            "has values that are no names: conversation_id",
        ),
        (
            {**MAPPING, "conversation_id": ["id", 5]},
            "has values that are no names: conversation_id",
        ),
        (
            {**MAPPING, "version": "id", "newest_by": "id"},
            "has both version and newest_by: a new row is a new version",
        ),
    ],
)
def test_conversations_E002(configure: Any, value: Any, text: str) -> None:
    configure(LEGACY=value)
    assert found(legacy.check_legacy(), "conversations.E002") == [
        f'CONVERSATIONS["LEGACY"] {text}.'
    ]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value",
    [
        "memory_chunk",
        5,
        {"model": "auth.User"},
        {**MAPPING, "model": "nowhere.User"},
        {**MAPPING, "state": "nowhere"},
        {**MAPPING, "to_state": "nowhere.f"},
    ],
    ids=str,
)
def test_a_process_that_runs_no_checks_says_that_legacy_is_none(configure: Any, value: Any) -> None:
    """As under a server: what it would say otherwise names nothing of the settings."""
    configure(LEGACY=value)
    for operation in (load_state, conversation_exists, delete_conversation):
        with (
            forced_phase(Phase.DUAL_WRITE),
            pytest.raises(ImproperlyConfigured, match=r"describes no store .*manage\.py check"),
        ):
            operation("c")


@pytest.mark.parametrize("value", [None, "", {}, "memory_chunks", MAPPING])
def test_conversations_E002_is_silent(configure: Any, value: Any) -> None:
    configure(LEGACY=value)
    assert legacy.check_legacy() == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "auth.Nobody"}, "[\"model\"] is 'auth.Nobody', which is no model."),
        ({"model": "nonsense"}, "[\"model\"] is 'nonsense', which is no model."),
        ({"state": "blob"}, "[\"state\"] is 'blob', which is no column of auth.User."),
        ({"owner": "groups"}, "[\"owner\"] is 'groups', which is no column of auth.User."),
        ({"owner": "logentry"}, "[\"owner\"] is 'logentry', which is no column of auth.User."),
        ({"version": "v"}, "[\"version\"] is 'v', which is no column of auth.User."),
        ({"state": "is_staff"}, '["state"] names auth.User.is_staff, a BooleanField.'),
        ({"updated_at": "email"}, '["updated_at"] names auth.User.email, a EmailField.'),
        (
            {"conversation_id": "nothing"},
            "[\"conversation_id\"] is 'nothing', which is no column of auth.User.",
        ),
        (
            {"conversation_id": ["id", "nothing"]},
            "[\"conversation_id\"] is 'nothing', which is no column of auth.User.",
        ),
        (
            {"conversation_id": "last_login"},
            '["conversation_id"] names auth.User.last_login, a DateTimeField: it is neither text'
            " nor integer nor UUID.",
        ),
        (
            {"conversation_id": ["username", "id"]},
            '["conversation_id"] names username, id: only the last of several columns may be text,'
            ' because ":" stands between them.',
        ),
        (
            {"newest_by": "last_login"},
            '["newest_by"] names auth.User.last_login, which cannot always find the newest row.',
        ),
    ],
)
def test_conversations_E003(configure: Any, change: dict[str, str], text: str) -> None:
    configure(LEGACY={**MAPPING, **change})
    assert found(legacy.check_legacy(), "conversations.E003") == [f'CONVERSATIONS["LEGACY"]{text}']


@isolate_apps("tests.support.blobs")
def test_conversations_E003_of_a_column_in_another_table(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statements name one table; and `migrate`, as the error would say, mends nothing."""

    class Special(TextSession):
        class Meta:
            app_label = "blobs"

    class Spelled(Special):
        class Meta:
            app_label = "blobs"
            proxy = True

    for model in (Special, Spelled):
        monkeypatch.setattr(mapping_checks, "model_of", lambda _, model=model: model)
        mapping = {"conversation_id": "session_key", "state": "payload"}
        configure(LEGACY={"model": "blobs.Special", **mapping})
        said = found(legacy.check_legacy(), "conversations.E003")
        assert [text.partition(" is ")[0].split('"')[-2] for text in said] == list(mapping)
        assert "which is a column of blobs.TextSession" in said[0]
        configure(
            LEGACY={"model": "blobs.Special", **mapping, "conversation_id": "textsession_ptr"}
        )
        assert len(found(legacy.check_legacy(), "conversations.E003")) == 1


def test_conversations_E003_is_silent(configure: Any) -> None:
    configure(LEGACY={**MAPPING, "version": "last_login", "updated_at": "last_login"})
    assert legacy.check_legacy() == []


@pytest.mark.parametrize("shape", SHAPES)
def test_the_usual_shapes_of_hosts_are_taken(configure: Any, shape: str) -> None:
    configure(LEGACY=SHAPES[shape].mapping)
    assert legacy.check_legacy() == []


def test_rows_are_walked_over_by_one_number_or_uuid(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LEGACY={**MAPPING, "newest_by": "date_joined"})
    assert legacy.check_legacy() == []
    monkeypatch.setattr(mapping_checks.IdColumn, "__init__", lambda self, field: None)
    monkeypatch.setattr(mapping_checks.IdColumn, "is_text", True, raising=False)
    (found_,) = found(legacy.check_legacy(), "conversations.E003")
    assert found_.startswith("The primary key of auth.User is a AutoField, by which a sync")


def test_conversations_E019(configure: Any) -> None:
    ownerless = {name: value for name, value in MAPPING.items() if name != "owner"}
    for mapping in (ownerless, {**MAPPING, "owner": None}):
        configure(LEGACY=mapping)
        assert legacy.check_legacy() == []
        configure(LEGACY=mapping, REQUIRE_OWNER=True)
        (said,) = found(legacy.check_legacy(), "conversations.E019")
        assert "names no owner column, and REQUIRE_OWNER is set" in said
    configure(LEGACY=MAPPING, REQUIRE_OWNER=True)
    assert legacy.check_legacy() == []


def test_conversations_E004(configure: Any) -> None:
    configure(LEGACY={**MAPPING, "to_state": "nowhere.f", "from_state": f"{__name__}.MAPPING"})
    first, second = found(legacy.check_legacy(), "conversations.E004")
    assert "to_state" in first
    assert "cannot be imported" in first
    assert "from_state" in second
    assert "cannot be called" in second
    function = f"{__name__}.convert"
    configure(LEGACY={**MAPPING, "to_state": function, "from_state": function})
    assert legacy.check_legacy() == []


def test_conversations_E005(configure: Any) -> None:
    configure(LEGACY={**MAPPING, "conversation_id": "email"})
    assert found(legacy.check_legacy(), "conversations.E005") == [
        "auth.User.email is not unique: two saves at once would leave two rows of one conversation."
    ]
    configure(LEGACY={**MAPPING, "conversation_id": ["is_staff", "email"]})
    assert len(found(legacy.check_legacy(), "conversations.E005")) == 1
    configure(LEGACY={**MAPPING, "conversation_id": "email", "newest_by": "id"})
    assert found(legacy.check_legacy(), "conversations.E005") == [
        "No index of auth.User begins with email: every load would read the whole table."
    ]
    constrained = {
        "model": "conversations.ConversationState",
        "conversation_id": "conversation_id",
        "owner": "user",
        "state": "extra",
    }
    for mapping in (MAPPING, constrained):
        configure(LEGACY=mapping)
        assert legacy.check_legacy() == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (5, "is 5, no dotted path"),
        ("nowhere.State", "cannot be imported"),
        (f"{__name__}.convert", "is no class"),
        ("datetime.timedelta", "has no method from_dict"),
        (f"{__name__}.Tight", "__slots__ leave no room"),
    ],
)
def test_conversations_E006(configure: Any, path: Any, text: str) -> None:
    configure(STATE_CLASS=path)
    (message,) = found(settings_checks.check_state_class(), "conversations.E006")
    assert text in message


@pytest.mark.parametrize(
    "path",
    [None, DEFAULTS["STATE_CLASS"], *(f"{__name__}.{n}" for n in ("Plain", "Slotted", "Roomy"))],
)
def test_conversations_E006_is_silent(configure: Any, path: Any) -> None:
    configure(STATE_CLASS=path)
    assert settings_checks.check_state_class() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE", 5),
        ("REQUIRE_OWNER", "False"),
        ("MAX_DEPTH", 0),
        ("MAX_DEPTH", 5000),
        ("MAX_DEPTH", True),
        ("MAX_MESSAGE_BYTES", 1.5),
        ("MAX_STATE_BYTES", "1"),
        ("RESUME_WITHIN", 3600),
        ("KEEP_SUPERSEDED", timedelta(days=-1)),
        ("KEEP_VERSIONS", -1),
        ("LEGACY_SETTLES_WITHIN", "1h"),
    ],
)
def test_conversations_E007(configure: Any, name: str, value: Any) -> None:
    configure(**{name: value})
    assert found(settings_checks.check_settings(), "conversations.E007") == [
        f'CONVERSATIONS["{name}"] is {value!r}.'
    ]


def test_conversations_E007_is_silent_about_every_default(configure: Any) -> None:
    configure(**DEFAULTS)
    assert settings_checks.check_settings() == []
    configure(**dict.fromkeys(DEFAULTS))
    assert settings_checks.check_settings() == []


def test_conversations_E007_knows_every_setting() -> None:
    elsewhere = {"LEGACY", "SWITCHES", "STATE_CLASS"}
    assert set(settings_checks.RULES) | elsewhere == set(DEFAULTS)


def test_conversations_E007_names_settings_that_are_no_mapping(settings: Any) -> None:
    settings.CONVERSATIONS = ["LEGACY"]
    assert found(settings_checks.check_settings(), "conversations.E007") == [
        "CONVERSATIONS is a list, not a mapping."
    ]


def test_conversations_E008(configure: Any) -> None:
    configure(LEGACI="memory_chunks")
    (message,) = settings_checks.check_settings()
    assert (message.id, message.hint) == ("conversations.E008", "Did you mean 'LEGACY'?")
    configure(**{"?": 1})
    assert len(found(settings_checks.check_settings(), "conversations.E008")) == 1
    configure(LEGACY="memory_chunks")
    assert settings_checks.check_settings() == []


def test_conversations_E009(configure: Any) -> None:
    configure(DATABASE="nowhere")
    assert found(databases.check_alias(), "conversations.E009") == [
        "CONVERSATIONS[\"DATABASE\"] is 'nowhere', which is no alias of DATABASES."
    ]
    configure(DATABASE=DEFAULT_DB_ALIAS)
    assert databases.check_alias() == []


def test_conversations_E010(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert databases.check_alias() == []
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "vendor", "mysql")
    assert len(found(databases.check_alias(), "conversations.E010")) == 1


@pytest.mark.parametrize(
    ("replica", "engines", "text"),
    [
        ("nowhere", ("postgresql", "postgresql"), "which is no alias of DATABASES."),
        ("other", ("postgresql", "postgresql"), 'which is CONVERSATIONS["DATABASE"] itself.'),
        (
            "third",
            ("postgresql", "sqlite3"),
            "but replicas are for PostgreSQL, and 'other' is PostgreSQL and 'third' is SQLite.",
        ),
        (
            "third",
            ("sqlite3", "sqlite3"),
            "but replicas are for PostgreSQL, and 'other' is SQLite and 'third' is SQLite.",
        ),
        ("third", ("postgresql", "postgresql"), None),
        (None, ("sqlite3", "sqlite3"), None),
        (5, ("sqlite3", "sqlite3"), None),
    ],
)
def test_conversations_E018(
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
    replica: Any,
    engines: tuple[str, str],
    text: str | None,
) -> None:
    chosen = {
        alias: {"ENGINE": f"django.db.backends.{engine}", "NAME": "nowhere"}
        for alias, engine in zip(("other", "third"), engines, strict=True)
    }
    handler = ConnectionHandler({DEFAULT_DB_ALIAS: {}, **chosen})
    monkeypatch.setattr(replicas, "connections", handler)
    monkeypatch.setattr(flags_checks, "connections", handler)
    configure(DATABASE="other", REPLICA=replica)
    wanted = [] if text is None else [f'CONVERSATIONS["REPLICA"] is {replica!r}, {text}']
    assert found(replicas.check_replica(), "conversations.E018") == wanted
    configure(DATABASE="missing", REPLICA="third")
    assert replicas.check_replica() == []


@pytest.mark.django_db
def test_conversations_W005(configure: Any, tmp_path: Any, django_db_blocker: Any) -> None:
    """A scratch database is on the same server, and yet no replica; see tests/replication."""
    check, aliases = replicas.check_replication, [DEFAULT_DB_ALIAS]
    assert check(databases=aliases) == []
    configure(REPLICA="nowhere")
    assert check(databases=aliases) == []
    configure(REPLICA=ALIAS)
    if connection.vendor != "postgresql":
        return
    with django_db_blocker.unblock(), scratch_database(tmp_path):
        messages = found(check(databases=aliases), "conversations.W005")
    assert messages == [
        "'scratch' is no streaming replica of 'default': it belongs to another cluster, or is"
        " another database."
    ]


class Elsewhere:
    """A router that sends conversations to a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "conversations" else None


class Refusing:
    """A router that keeps memory from being migrated."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "memory" else None


class Failing:
    """A router with a defect."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        raise KeyError(model)


@pytest.mark.parametrize(
    ("router", "text"),
    [
        (Elsewhere, "are routed to 'replica', but CONVERSATIONS uses 'default'"),
        (Refusing, "from being migrated on 'default'"),
        (Failing, "A router of DATABASE_ROUTERS failed"),
    ],
)
def test_conversations_E011(settings: Any, configure: Any, router: type, text: str) -> None:
    assert databases.check_alias() == []
    settings.DATABASE_ROUTERS = [f"{__name__}.{router.__name__}"]
    (message,) = found(databases.check_alias(), "conversations.E011")
    assert text in message


def test_conversations_E011_asks_for_a_router_where_the_alias_is_not_default(
    other_alias: Any,
) -> None:
    other_alias("sqlite3", OPTIONS={"transaction_mode": "IMMEDIATE"})
    (message,) = found(databases.check_alias(), "conversations.E011")
    assert "are routed to 'default', but CONVERSATIONS uses 'other'" in message
    assert "conversations.ConversationState" in message
    assert "auth.User" in message
    assert "waffle.Switch" in message


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_conversations_E012(
    tmp_path: Any, django_db_blocker: Any, configure: Any, encoding: str
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite takes every text")
    configure(DATABASE=ALIAS)
    with django_db_blocker.unblock(), scratch_database(tmp_path, encoding=encoding):
        said = databases.check_server(databases=[ALIAS])
    assert ["SQL_ASCII" in text for text in found(said, "conversations.E012")] == (
        [] if encoding == "UTF8" else [True]
    )


@pytest.mark.django_db
@pytest.mark.parametrize("where", ["server", "options"])
def test_conversations_E016(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    aliases = [DEFAULT_DB_ALIAS]
    assert found(databases.check_server(databases=aliases), "conversations.E016") == []
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's transactions wait before they read")
    if where == "server":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL default_transaction_isolation = 'repeatable read'")
    else:
        monkeypatch.setattr(connection, "isolation_level", IsolationLevel.SERIALIZABLE)
    (message,) = found(databases.check_server(databases=aliases), "conversations.E016")
    assert "READ COMMITTED" in message


def test_conversations_E017(settings: Any) -> None:
    assert installation.check_time_zones() == []
    settings.USE_TZ = False
    assert found(installation.check_time_zones(), "conversations.E017") == ["USE_TZ is False."]


@pytest.mark.django_db
def test_conversations_E013(monkeypatch: pytest.MonkeyPatch, configure: Any) -> None:
    aliases = [DEFAULT_DB_ALIAS]
    assert found(databases.check_server(databases=aliases), "conversations.E013") == []
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server")
    monkeypatch.setitem(connections[DEFAULT_DB_ALIAS].__dict__, "pg_version", 130_020)
    assert len(found(databases.check_server(databases=aliases), "conversations.E013")) == 1


@pytest.mark.django_db
def test_conversations_E014(configure: Any) -> None:
    check = databases.check_recorded_migrations
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE conversation_tombstones")
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "conversations.E014") == [
        "The migrations of conversations are recorded, but there is no table"
        " conversation_tombstones."
    ]


@pytest.mark.django_db
def test_conversations_E015(configure: Any) -> None:
    MigrationRecorder.Migration.objects.filter(app="conversations").delete()
    (message,) = found(
        databases.check_recorded_migrations(databases=[DEFAULT_DB_ALIAS]), "conversations.E015"
    )
    assert message.startswith("There is a table conversation_conflicts, conversation_messages")


def test_conversations_E015_is_silent_on_an_empty_database(scratch: Any) -> None:
    assert databases.check_recorded_migrations(databases=[ALIAS]) == []
    assert memory_checks.check_recorded_migrations(databases=[ALIAS]) == []


def test_conversations_W001(other_alias: Any) -> None:
    other = other_alias("sqlite3", NAME="some.sqlite3")
    assert len(found(databases.check_alias(), "conversations.W001")) == 1
    other.settings_dict["OPTIONS"] = {"transaction_mode": "immediate"}
    assert found(databases.check_alias(), "conversations.W001") == []
    other.settings_dict.update(OPTIONS={}, NAME=":memory:")
    assert found(databases.check_alias(), "conversations.W001") == []


def test_conversations_W002(scratch: Any) -> None:
    assert databases.check_server(databases=[ALIAS]) == []
    if scratch.vendor != "sqlite":
        pytest.skip("PostgreSQL has no journal mode")
    with scratch.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = DELETE")
    (message,) = found(databases.check_server(databases=[ALIAS]), "conversations.W002")
    assert "has the journal mode delete" in message


def test_conversations_W003(other_alias: Any) -> None:
    other = other_alias("postgresql", CONN_MAX_AGE=60)
    assert len(found(databases.check_persistent_connections(), "conversations.W003")) == 1
    other.settings_dict["CONN_HEALTH_CHECKS"] = True
    assert databases.check_persistent_connections() == []
    other.settings_dict.update(CONN_HEALTH_CHECKS=False, CONN_MAX_AGE=0)
    assert databases.check_persistent_connections() == []


def test_conversations_W004(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "django-conversation-store"
    providers = {"flags": [ours, "django-flags", ours], "memory": [ours, ours], "conversations": []}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: providers)
    assert found(installation.check_distributions(), "conversations.W004") == [
        "The package `flags` is provided by django-conversation-store, django-flags."
    ]
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"flags": [ours]})
    assert installation.check_distributions() == []
    monkeypatch.setattr(metadata, "packages_distributions", lambda: 1 / 0)
    assert installation.check_distributions() == []


@pytest.mark.django_db
def test_memory_E001(configure: Any) -> None:
    check = memory_checks.check_adoption
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE memory_chunks RENAME COLUMN content TO body")
    (message,) = check(databases=[DEFAULT_DB_ALIAS])
    assert (message.id, message.msg, message.hint) == (
        "memory.E001",
        "memory_chunks has no column content.",
        "Add it, or rename the table if it is not ours.",
    )


@pytest.mark.django_db
def test_memory_E002(configure: Any) -> None:
    check = memory_checks.check_legacy_is_named
    summary, state = (MemoryChunk.objects.create(content="{}") for _ in range(2))
    for chunk, kind in ((summary, "summary"), (state, "draft")):
        for key, value in {"conversation_id": "c-1", "type": kind}.items():
            MemoryMetadata.objects.create(chunk=chunk, key=key, value=value)
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    MemoryMetadata.objects.filter(chunk=state, key="type").update(value="state")
    assert len(found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E002")) == 1
    configure(LEGACY="memory_chunks")
    assert check(databases=[DEFAULT_DB_ALIAS]) == []


@pytest.mark.django_db
def test_memory_E003(configure: Any) -> None:
    check = memory_checks.check_recorded_migrations
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    cascade = " CASCADE" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE memory_context_items{cascade}")
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E003") == [
        "The migrations of memory are recorded, but there is no table memory_context_items."
    ]


@pytest.mark.django_db
def test_memory_E004(configure: Any) -> None:
    check = memory_checks.check_recorded_migrations
    MigrationRecorder.Migration.objects.filter(app="memory").delete()
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E004") == [
        "There is a table memory_context_items, but no migration of memory is recorded."
    ]


def test_flags_E001(configure: Any) -> None:
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_saves": True})
    assert found(flags_checks.check_switches(), "flags.E001") == [
        "CONVERSATIONS[\"SWITCHES\"] names 'use_new_saves', which is no switch."
    ]
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_save": True})
    assert flags_checks.check_switches() == []


@pytest.mark.parametrize("value", ["True", 1, None])
def test_flags_E002(configure: Any, value: Any) -> None:
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_save": value})
    assert len(found(flags_checks.check_switches(), "flags.E002")) == 1
    configure(LEGACY="memory_chunks", SWITCHES=[value])
    assert len(found(flags_checks.check_switches(), "flags.E002")) == 1
    configure(LEGACY="memory_chunks", SWITCHES=None)
    assert flags_checks.check_switches() == []


def test_flags_W001(configure: Any) -> None:
    configure(SWITCHES={"use_new_save": True})
    assert found(flags_checks.check_switches(), "flags.W001") == [
        'CONVERSATIONS["SWITCHES"] is ignored, because LEGACY is not set.'
    ]
    configure(SWITCHES={})
    assert flags_checks.check_switches() == []


@pytest.mark.django_db
def test_flags_W002(configure: Any) -> None:
    check = flags_checks.check_stored_switches
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_storage": True})
    SwitchRow.objects.all().delete()
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    for name, active in switches_for(Phase.NEW_READS).items():
        SwitchRow.objects.create(name=name, active=active)
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    SwitchRow.objects.filter(name="use_new_save").update(active=False)
    (message,) = check(databases=[DEFAULT_DB_ALIAS])
    assert (message.id, message.msg, message.hint) == (
        "flags.W002",
        "The switches are mixed: they spell no phase, and act as new_reads.",
        "Turn use_new_save on.",
    )


def test_flags_W002_is_silent_without_waffles_table(scratch: Any) -> None:
    assert flags_checks.check_stored_switches(databases=[ALIAS]) == []


# Whether any of them fires


def identifiers() -> set[str]:
    """Return the ids of every system check, as the code spells them."""
    sources = [path.read_text("utf-8") for app in APPS for path in (ROOT / app).rglob("*.py")]
    return {found for text in sources for found in re.findall(r'"(\w+\.[EW]\d{3})"', text)}


def positive(node: ast.AST) -> bool:
    """Whether a statement says of what it names that it is there."""
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Tuple)
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
        return False
    empty = any(isinstance(one, ast.List) and not one.elts for one in node.test.comparators)
    return not empty and not isinstance(node.test.ops[0], ast.NotIn)


def asserted(source: str) -> set[str]:
    """Return the strings of the statements of tests by which something has to be there."""
    tree = ast.parse(source)
    tests = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef))
    inside = (node for each in tests if each.name.startswith("test_") for node in ast.walk(each))
    within = (leaf for node in inside if positive(node) for leaf in ast.walk(node))
    return {leaf.value for leaf in within if isinstance(leaf, ast.Constant) if leaf.value in IDS}


IDS = identifiers()


@pytest.fixture(scope="module")
def made_to_fire() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return set().union(*(asserted(path.read_text("utf-8")) for path in files))


@pytest.mark.parametrize("check_id", sorted(IDS))
def test_a_test_makes_each_check_fire(check_id: str, made_to_fire: set[str]) -> None:
    assert check_id in made_to_fire


def test_a_check_that_no_test_makes_fire_would_be_noticed() -> None:
    silent = """
def test_silence():
    assert check() == []
    assert found(check(), "memory.E001") == []
    assert "memory.E002" not in ids
    messages = found(check(), "memory.E003")
def helper():
    assert found(check(), "memory.E004") == ["text"]
"""
    assert asserted(silent) == set()
    assert asserted(silent.replace("helper", "test_it")) == {"memory.E004"}
    assert len(IDS) > 30


def _ours() -> list[Any]:
    every = registry.get_checks(include_deployment_checks=True)
    return [check for check in every if check.__module__.split(".")[0] in APPS]


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "LEGACY",
        [],
        {1: 2},
        {"LEGACY": 5, "SWITCHES": 5, "STATE_CLASS": {}, "DATABASE": []},
        {"LEGACY": {"model": 5}, "SWITCHES": {5: {}}, "DATABASE": "nowhere"},
        {"LEGACY": {**MAPPING, "model": "."}, "SWITCHES": {"use_new_save": "x"}},
    ],
)
@pytest.mark.django_db
def test_no_check_raises_for_any_settings(settings: Any, value: Any) -> None:
    settings.CONVERSATIONS = value
    for check in _ours():
        for aliases in (None, [DEFAULT_DB_ALIAS]):
            assert isinstance(check(app_configs=None, databases=aliases), list)


@pytest.mark.django_db
def test_checks_are_silent_while_the_database_is_down(
    monkeypatch: pytest.MonkeyPatch, configure: Any
) -> None:
    def down(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "cursor", down)
    for check in _ours():
        if Tags.database in check.tags:
            assert check(app_configs=None, databases=[DEFAULT_DB_ALIAS]) == []


def test_database_checks_touch_no_database_unless_asked(configure: Any) -> None:
    for check in _ours():
        assert isinstance(check(app_configs=None, databases=None), list)


@pytest.mark.django_db
def test_the_project_itself_has_nothing_to_complain_about() -> None:
    with connection.cursor() as cursor:
        # What other tests left behind was never analysed.
        cursor.execute("ANALYZE")
    messages = run_checks(databases=[DEFAULT_DB_ALIAS])
    assert [message for message in messages if (message.id or "").split(".")[0] in APPS] == []
