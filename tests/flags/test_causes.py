"""What an error came from keeps what is needed to find the fault, and nothing that users wrote."""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, Error, IntegrityError, OperationalError, connection, transaction
from django.db.models import ProtectedError, RestrictedError
from django.db.models.signals import pre_delete
from django.utils import timezone

from conversations.exceptions import (
    ArchiveRefused,
    InvalidState,
    StorageUnavailable,
    UnreadableState,
)
from conversations.formats import read_conversations
from conversations.rollout.retirement.archives import lines_read
from conversations.state import AgentState
from conversations.storage import (
    aload_state,
    append_messages,
    delete_conversation,
    load_state,
    replace_message,
    save_state,
    update_state_partial,
)
from conversations.stores.chunks.format import parsed
from conversations.stores.sql.cursors import cannot_be_read
from flags.causes import Withheld, withheld
from flags.connections import reconnecting
from flags.phases import Phase
from flags.schema import not_migrated
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.faults.injection import failing, mentions_tables
from tests.machine.oldcode import OldSession
from tests.support.blobs.models import TextSession
from tests.support.chains import chain, errors_at_hand, raised_by, reported, told, values_behind
from tests.support.factories import messages, state, texts

pytestmark = pytest.mark.django_db
SECRET = "said in confidence"
TABLES = {
    "conversation_messages": "content",
    "conversation_states": "user_input",
    "memory_chunks": "content",
}


@pytest.fixture
def refusing() -> None:
    """Let the database refuse every row with the secret, as a host's constraint or trigger may."""
    with connection.cursor() as cursor:
        for table, column in TABLES.items():
            if connection.vendor == "postgresql":
                cursor.execute(
                    f"ALTER TABLE {table} ADD CONSTRAINT {table}_refuses"
                    f" CHECK ({column} NOT LIKE '%{SECRET}%') NOT VALID"
                )
                continue
            for event in ("INSERT", "UPDATE"):
                cursor.execute(
                    f"CREATE TRIGGER {table}_{event} BEFORE {event} ON {table}"
                    f" WHEN NEW.{column} LIKE '%{SECRET}%'"
                    f" BEGIN SELECT RAISE(ABORT, 'refused: {SECRET}'); END"
                )


WRITES: dict[str, Callable[[], Any]] = {
    "save_state": lambda: save_state("c", state(SECRET)),
    "save_state of a new one": lambda: save_state("new", state(SECRET)),
    "append_messages": lambda: append_messages("c", messages(SECRET)),
    "append_messages with keys": lambda: append_messages("c", messages(SECRET), keys=["k"]),
    "update_state_partial": lambda: update_state_partial("c", {"user_input": SECRET}),
    "replace_message": lambda: replace_message("c", 1, {"content": SECRET}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_refused_row_is_nowhere_in_the_error(
    phase: Phase, refusing: None, write: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    failure = raised_by(write)
    assert isinstance(failure, StorageUnavailable)
    assert SECRET not in told(failure) + reported(failure)
    # Error pages and reporters show the values of a traceback: of these, the statement's.
    assert not [value for value in values_behind(failure) if SECRET in value]
    assert not [value for value in errors_at_hand(failure) if SECRET in value]
    assert SECRET not in caplog.text
    assert texts(load_state("c")) == ["a"]


def test_a_cause_says_which_constraint_of_which_table_refused(
    new_only: None, refusing: None
) -> None:
    failure = raised_by(lambda: append_messages("c", messages(SECRET), create=True))
    assert failure is not None
    cause = failure.__cause__
    assert type(cause) is IntegrityError
    driver: Any = cause.__cause__
    if connection.vendor != "postgresql":
        assert type(driver) is sqlite3.IntegrityError
        assert driver.sqlite_errorname == "SQLITE_CONSTRAINT_TRIGGER"
        return
    import psycopg

    assert type(driver) is psycopg.errors.CheckViolation
    assert driver.sqlstate == driver.diag.sqlstate == "23514"
    assert driver.diag.table_name == "conversation_messages"
    assert driver.diag.constraint_name == "conversation_messages_refuses"
    assert driver.diag.message_detail is None
    assert (
        str(cause)
        == str(driver)
        == (
            'new row for relation "conversation_messages" violates check constraint'
            ' "conversation_messages_refuses" (SQLSTATE 23514, table conversation_messages,'
            " constraint conversation_messages_refuses)"
        )
    )
    # It goes through a queue, or a pool of processes, as the driver's own does.
    assert pickle.loads(pickle.dumps(driver)).diag.constraint_name == driver.diag.constraint_name


def test_a_traceback_still_leads_to_the_statement(new_only: None, refusing: None) -> None:
    failure = raised_by(lambda: append_messages("c", messages(SECRET), create=True))
    assert failure is not None
    assert "conversations/stores/normalized" in told(failure)


def test_the_exception_that_a_caller_handles_stays_the_callers(
    new_only: None, refusing: None
) -> None:
    theirs = ValueError("of the host")
    failure: BaseException | None = None
    try:
        raise theirs
    except ValueError:
        failure = raised_by(lambda: append_messages("c", messages(SECRET), create=True))
    assert failure is not None
    assert failure.__context__ is theirs
    assert SECRET not in told(failure)


def test_a_function_of_operators_passes_the_error_on_without_the_row(
    new_only: None, refusing: None
) -> None:
    @reconnecting
    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            columns = "(created_at, content)"
            cursor.execute(f"INSERT INTO memory_chunks {columns} VALUES (%s, %s)", [None, SECRET])

    failure = raised_by(work)
    assert type(failure) is IntegrityError
    assert SECRET not in told(failure) + reported(failure)


def provoked(sql: str, *parameters: Any) -> BaseException:
    """Return what stays of the error of a statement."""

    def execute() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            cursor.fetchall()

    failure = raised_by(execute)
    assert failure is not None
    assert SECRET in told(failure), "the database says it"
    safe = withheld(failure)
    assert type(safe) is type(failure)
    assert type(safe.__cause__) is type(failure.__cause__)
    assert SECRET not in told(safe) + reported(safe)
    return safe


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite converts everything")
def test_a_value_that_is_refused_is_not_repeated_on_postgresql() -> None:
    safe = provoked("SELECT CAST(%s AS text)::integer", SECRET)
    assert type(safe) is DataError
    assert str(safe) == "its text is left out, because it may quote stored data (SQLSTATE 22P02)"
    safe = provoked("SELECT CAST(%s AS text)::jsonb", f'{{"{SECRET}')
    assert getattr(safe.__cause__, "sqlstate", None) == "22P02"
    # A function may say what it likes, with any state.
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION pg_temp.refuse(said text) RETURNS int LANGUAGE plpgsql AS $$"
            " BEGIN RAISE EXCEPTION 'refused: %', said USING ERRCODE = '23514'; END $$"
        )
    safe = provoked("SELECT pg_temp.refuse(%s)", SECRET)
    assert str(safe) == "its text is left out, because it may quote stored data (SQLSTATE 23514)"


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL keeps only text")
def test_bytes_that_are_no_text_are_not_repeated_on_sqlite() -> None:
    broken = SECRET.encode().hex() + "ff"
    safe = provoked(f"SELECT CAST(x'{broken}' AS text)")
    assert (type(safe), str(safe)) == (
        OperationalError,
        "Could not decode to UTF-8: its text is left out, because it may quote stored data",
    )
    assert cannot_be_read(safe)


def test_a_cause_that_says_how_to_go_on_stays() -> None:
    def missing() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM there_is_none")

    failure = raised_by(missing)
    assert failure is not None
    safe = withheld(failure)
    assert not_migrated(safe)
    assert "there_is_none" in str(safe)
    assert str(withheld(OperationalError("the connection is closed"))) == "the connection is closed"
    assert str(withheld(ValueError(SECRET))) == (
        "ValueError: its text is left out, because it may quote stored data"
    )
    assert withheld(withheld(failure)).args == safe.args


def test_a_refusal_by_a_hosts_rows_is_an_error_of_ours(settings: Any) -> None:
    """Django's error of that holds the rows, and is not made of a text alone."""
    settings.CONVERSATIONS = host_rows(json.dumps(state("a").to_dict()))

    def refuse(instance: Any, **said: Any) -> None:
        kind = ProtectedError if phase == Phase.LEGACY else RestrictedError
        raise kind(f"{instance.payload} is referred to", {instance})

    pre_delete.connect(refuse, sender=TextSession)
    try:
        for phase in (Phase.LEGACY, Phase.NEW_ONLY):
            with forced_phase(phase):
                failure = raised_by(lambda: delete_conversation("c"))
                assert isinstance(failure, StorageUnavailable)
                assert type(failure.__cause__) is IntegrityError
                assert str(failure) == (
                    f"The database refused the change of an operation on conversation c"
                    f" ({'Protected' if phase == Phase.LEGACY else 'Restricted'}Error): see its"
                    " cause. Nothing was changed."
                )
                assert not [value for value in values_behind(failure) if '"content"' in value]
                assert texts(load_state("c")) == ["a"]
    finally:
        pre_delete.disconnect(refuse, sender=TextSession)


@reconnecting
def steps() -> Iterator[int]:
    """A walk whose second step fails."""
    yield 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM there_is_none")


@pytest.mark.django_db(transaction=True)
def test_a_block_that_began_between_two_steps_is_not_left(new_only: None) -> None:
    """The next block inside it would be taken for the outermost, and would commit."""
    walk = steps()
    assert next(walk) == 1
    with transaction.atomic():
        assert isinstance(raised_by(lambda: next(walk)), Error)
        assert connection.in_atomic_block
        transaction.set_rollback(True)


def test_an_exception_handled_between_two_steps_stays_the_callers(new_only: None) -> None:
    theirs = IntegrityError(SECRET)
    walk, failure = steps(), None
    assert next(walk) == 1
    with transaction.atomic():
        try:
            raise theirs
        except IntegrityError:
            failure = raised_by(lambda: next(walk))
        transaction.set_rollback(True)
    assert failure is not None
    assert [one for one in chain(failure) if one is theirs]
    assert theirs.args == (SECRET,)


def test_an_error_is_forgotten_with_its_states_once_it_was_handled(new_only: None) -> None:
    """Its frames hold what was loaded or saved: in a circle they would stay until a collection."""
    save_state("c", state("a"))
    forgotten = []
    gc.collect()
    gc.disable()
    try:
        for call in (lambda: load_state("c"), lambda: append_messages("c", messages("x"))):
            with failing(mentions_tables):
                try:
                    call()
                except StorageUnavailable as error:
                    forgotten.append(weakref.ref(error))
        assert [found() for found in forgotten] == [None, None]
    finally:
        gc.enable()


def test_the_class_of_a_drivers_error_stays_for_any_arguments() -> None:
    psycopg, pool = pytest.importorskip("psycopg"), pytest.importorskip("psycopg_pool")

    class Chosen(psycopg.errors.UniqueViolation):  # type: ignore[misc,name-defined]
        def __init__(self, first: Any, second: Any) -> None:
            super().__init__(first)

    assert type(withheld(pool.PoolTimeout("after 30 s"))) is pool.PoolTimeout
    assert type(withheld(Chosen(SECRET, 1))) is psycopg.errors.UniqueViolation
    # What a library has beside its errors has no state.
    assert type(withheld(psycopg.Rollback())) is Withheld


# States that cannot be read

BLOBS = {
    "no JSON": f'{{"user_input": "{SECRET}',
    "a number that is too long": f'{{"{SECRET}": {"1" * 5000}}}',
    "a list": json.dumps([SECRET]),
    "a field of another type": json.dumps({"history": SECRET}),
}


def chunks(text: str) -> dict[str, Any]:
    """Let the chunk tables hold a blob of the conversation."""
    chunk = MemoryChunk.objects.create(content=text, created_at=timezone.now())
    for key, value in {"conversation_id": "c", "type": "state"}.items():
        MemoryMetadata.objects.create(chunk_id=chunk.pk, key=key, value=value)
    return {"LEGACY": "memory_chunks"}


def host_rows(text: str) -> dict[str, Any]:
    """Let a host's own table hold it."""
    TextSession.objects.create(session_key="c", payload=text)
    return {"LEGACY": dict(OldSession.settings)}


@pytest.mark.parametrize("text", BLOBS.values(), ids=BLOBS)
@pytest.mark.parametrize("store", [chunks, host_rows])
def test_an_unreadable_state_keeps_nothing_of_its_blob(
    store: Any, text: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CONVERSATIONS = store(text)
    for reading in (Phase.LEGACY, Phase.DUAL_WRITE, Phase.NEW_ONLY):
        for call in (
            lambda: load_state("c"),
            lambda: async_to_sync(aload_state)("c"),
            lambda: append_messages("c", messages("x")),
            lambda: save_state("c", AgentState(user_input="x")),
        ):
            with forced_phase(reading):
                failure = raised_by(call)
            assert isinstance(failure, UnreadableState), (reading, call)
            assert SECRET not in told(failure) + reported(failure)
            assert not [value for value in values_behind(failure) if SECRET in value]
    assert SECRET not in caplog.text


def test_the_error_of_a_blob_holds_nothing_of_it_where_it_is_raised() -> None:
    for text in BLOBS.values():
        failure = raised_by(lambda: parsed(text))  # noqa: B023
        assert isinstance(failure, InvalidState)
        assert SECRET not in told(failure)


def test_a_hosts_function_is_named_by_its_line_and_its_error_by_its_class(settings: Any) -> None:
    chosen = host_rows(json.dumps({"a": SECRET}))
    chosen["LEGACY"]["to_state"] = f"{__name__}.failing_to_state"
    settings.CONVERSATIONS = chosen
    with forced_phase(Phase.LEGACY):
        failure = raised_by(lambda: load_state("c"))
    assert isinstance(failure, UnreadableState)
    assert "is no state (KeyError)" in str(failure)
    causes = [one for one in chain(failure) if isinstance(one, Withheld)]
    assert [one.name for one in causes] == ["KeyError"]
    assert "in failing_to_state" in told(failure)
    assert SECRET not in told(failure) + reported(failure)


def failing_to_state(data: Any) -> Any:
    raise KeyError(SECRET)


# Files


FILES: dict[str, bytes] = {
    "a line that is broken off": f'{{"id": "c", "messages": [{{"content": "{SECRET}'.encode(),
    "an array that is broken off": f'[{{"id": "c"}},\n{{"content": "{SECRET}"'.encode(),
    "bytes that are no text": b'[{"content": "' + SECRET.encode() + b'\xff"}]',
    "a name of a field": json.dumps({"messages": messages("x"), "focus": SECRET}).encode(),
    "a damaged archive": gzip.compress(SECRET.encode() * 100)[:-12],
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_not_quoted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    failure = raised_by(lambda: list(read_conversations(path)))
    assert isinstance(failure, InvalidState)
    assert SECRET not in told(failure) + reported(failure)
    refused = raised_by(lambda: list(lines_read(path)))
    assert isinstance(refused, ArchiveRefused)
    assert SECRET not in told(refused) + reported(refused)
