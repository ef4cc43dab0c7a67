"""What LegacyStore promises, for every store on either database; the tables keep it as well."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import given, settings

from conversations.content.document import Document
from conversations.exceptions import InvalidState, UnreadableState
from conversations.models import ConversationState, ConversationTombstone
from conversations.routing.locks import token_value
from conversations.state import AgentState
from conversations.stores.base import LegacyStore
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.appended_rows import AppendedRows
from conversations.stores.jsonfield.store import JSONFieldStore
from conversations.stores.normalized import find_row
from conversations.stores.sql.expressions import NEVER
from conversations.stores.types import Blobs, Leftovers
from memory.models import MemoryChunk
from tests.support.blobs.models import AssistantSession, TextSession, VersionedSession
from tests.support.factories import UserFactory, messages
from tests.support.hostshapes.models import Entry
from tests.support.legacy_schema import old_save
from tests.support.scale import examples
from tests.support.strategies import states
from tests.support.tables import Tables

pytestmark = pytest.mark.django_db

TEXT = {
    "model": "blobs.TextSession",
    "conversation_id": "session_key",
    "owner": "owner",
    "state": "payload",
}
JSON = TEXT | {"model": "blobs.AssistantSession", "state": "data", "version": "version"}
APPENDED = TEXT | {"model": "hostshapes.Entry", "newest_by": "id"}
STORES: dict[str, Any] = {
    "chunks": ChunkStore,
    "appended": lambda: AppendedRows(APPENDED),
    "text": lambda: JSONFieldStore(TEXT),
    "json": lambda: JSONFieldStore(JSON),
    "tables": Tables,
}
VERSIONED = TEXT | {"model": "blobs.VersionedSession", "updated_at": "changed_at"}
Store = LegacyStore | Tables
LEGACY_STORES = [name for name in STORES if name != "tables"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    made: Store = STORES[request.param]()
    return made


@pytest.fixture(params=LEGACY_STORES)
def legacy(request: pytest.FixtureRequest) -> LegacyStore:
    made: LegacyStore = STORES[request.param]()
    return made


def document(*lines: str, **fields: Any) -> Document:
    return Document.from_dict(AgentState(conversation_history=messages(*lines), **fields).to_dict())


def held(store: Store, conversation_id: str = "c") -> Document:
    stored = store.load(conversation_id)
    assert stored is not None
    return stored.document


def written_by_others(store: LegacyStore, *lines: str, conversation_id: str = "c") -> None:
    """Write as the host's own code does, which knows nothing of us."""
    if isinstance(store, ChunkStore):
        old_save(connection, conversation_id, None, document(*lines).to_dict())
        return
    data = document(*lines).to_dict()
    if store.model is Entry:
        Entry.objects.create(session_key=conversation_id, payload=json.dumps(data))
        return
    if store.model is TextSession:
        TextSession.objects.update_or_create(
            session_key=conversation_id, defaults={"payload": json.dumps(data)}
        )
        return
    session = AssistantSession.objects.filter(session_key=conversation_id).first()
    session = session or AssistantSession(session_key=conversation_id)
    session.data, session.version = data, session.version + 1
    session.save()


# Every store


def test_a_store_follows_the_protocol(legacy: LegacyStore) -> None:
    assert isinstance(legacy, LegacyStore)
    assert legacy.name == "legacy"


def test_a_store_that_holds_nothing_says_so(store: Store) -> None:
    assert store.load("c") is None
    assert store.delete("c") is False
    assert list(store.list()) == []


def test_a_saved_state_is_loaded(store: Store) -> None:
    user = UserFactory()
    saved = document("a", "b", memory_context=[{"content": "i"}], extra={"z": 1, "a": [2]})
    store.save("c", saved, owner=str(user.pk))
    stored = store.load("c")
    assert stored is not None
    if getattr(store, "exact", True):
        assert stored.document.to_json() == saved.to_json()
    assert stored.document == saved
    assert stored.owner == str(user.pk)


@pytest.mark.long
@given(state=states())
@settings(max_examples=examples(200))
def test_any_state_comes_back_exactly(store: Store, state: AgentState) -> None:
    saved = Document.from_dict(json.loads(json.dumps(state.to_dict())))
    try:
        store.save("c", saved)
    except InvalidState:
        # A JSON column says before any SQL what it cannot hold.
        assert isinstance(store, JSONFieldStore)
        assert store.format.as_json
        return
    if getattr(store, "exact", True):
        assert held(store).to_json() == saved.to_json()


def test_the_last_save_is_what_the_store_holds(store: Store) -> None:
    for lines in (["a"], ["a", "b", "c"], ["x"], []):
        store.save("c", document(*lines, step_count=len(lines)))
        assert held(store) == document(*lines, step_count=len(lines))


def test_deleting_leaves_nothing_and_touches_no_other(store: Store) -> None:
    for conversation_id in ("c", "d"):
        store.save(conversation_id, document(conversation_id, memory_context=["i"]))
        store.save(conversation_id, document(conversation_id, "again"))
    assert store.delete("c") is True
    assert store.load("c") is None
    assert store.delete("c") is False
    assert held(store, "d") == document("d", "again")


def test_conversations_are_listed_of_an_owner_and_by_pages(store: Store) -> None:
    owner, other = UserFactory(), UserFactory()
    for name in ("a", "b", "c"):
        store.save(name, document("x"), owner=str(owner.pk))
    store.save("others", document("x"), owner=str(other.pk))
    store.save("nobodys", document("x"))
    found = store.list(owner=str(owner.pk))
    assert [summary.conversation_id for summary in found] == ["c", "b", "a"]
    assert {summary.store for summary in found} == {store.name}
    assert {summary.message_count for summary in found} == (
        {1} if store.name == "tables" else {None}
    )
    owners = dict.fromkeys("abc", str(owner.pk)) | {"others": str(other.pk), "nobodys": None}
    assert {s.conversation_id: s.owner for s in store.list()} == owners
    assert {s.owner for s in found} == {str(owner.pk)}
    paged: list[str] = []
    before = None
    while page := store.list(owner=str(owner.pk), before=before, limit=1):
        assert len(page) == 1
        paged.append(page[0].conversation_id)
        before = (page[0].updated_at or NEVER, page[0].conversation_id)
    assert paged == ["c", "b", "a"]


def test_a_hosts_conversations_without_a_time_are_listed_last_and_by_pages() -> None:
    store = JSONFieldStore(VERSIONED)
    times = {"a": 2, "b": None, "c": 1, "d": None, "e": 2}
    now = timezone.now()
    for name, hours in times.items():
        store.save(name, document("x"))
        moment = None if hours is None else now + timedelta(hours=hours)
        VersionedSession.objects.filter(session_key=name).update(changed_at=moment)
    paged: list[str] = []
    before = None
    while page := store.list(before=before, limit=1):
        paged.append(page[0].conversation_id)
        before = (page[0].updated_at or NEVER, page[0].conversation_id)
    assert paged == ["e", "a", "c", "d", "b"]


def test_equal_versions_mean_equal_content(store: Store) -> None:
    store.save("c", document("a"))
    first = store.load("c")
    again = store.load("c")
    store.save("c", document("a", "b"))
    grown = store.load("c")
    assert first is not None
    assert again is not None
    assert grown is not None
    assert first.version == again.version != grown.version


def test_our_own_writes_return_the_token_that_the_store_shows(store: Store) -> None:
    token = store.token("c")
    for turn in range(3):
        token = store.save("c", document(str(turn)), revision=turn + 1, known=token)
        assert store.token("c", token) == token


# LegacyStore


def test_the_token_changes_with_a_foreign_write(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=1, known=legacy.token("c"))
    written_by_others(legacy, "a", "theirs")
    assert legacy.token("c", token) != token
    assert legacy.token("other", "") in ("", "-")


def test_a_probe_inside_another_query_agrees_with_the_token(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=1, known=legacy.token("c"))
    Tables().save("c", document("a"))
    ConversationState.rows.filter(conversation_id="c").update(legacy_token=token)

    def judged() -> str:
        row = find_row("c", token_sql=legacy.token_sql())
        assert row is not None
        return legacy.token_of(token_value(row), token)

    assert judged() == token
    written_by_others(legacy, "a", "theirs")
    assert judged() != token
    assert (judged() == token) is (legacy.token("c", token) == token)


def test_a_foreign_blob_is_given_once_and_settled(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=1, known=legacy.token("c"))
    assert list(legacy.list_foreign("c", token, legacy.foreign_ids("c", token))) == []
    written_by_others(legacy, "a", "theirs")
    seen = legacy.foreign_ids("c", token)
    (blob,) = legacy.list_foreign("c", token, seen)
    assert blob.stored is not None
    assert blob.stored.document == document("a", "theirs")
    settled = legacy.mark_ingested("c", revision=2, known=token, foreign_ids=seen)
    assert legacy.token("c", settled) == settled
    assert list(legacy.list_foreign("c", settled, legacy.foreign_ids("c", settled))) == []


def test_a_blob_written_after_the_survey_is_not_settled(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=1, known=legacy.token("c"))
    written_by_others(legacy, "a", "first")
    seen = legacy.foreign_ids("c", token)
    written_by_others(legacy, "a", "first", "second")
    settled = legacy.mark_ingested("c", revision=2, known=token, foreign_ids=seen)
    assert legacy.token("c", settled) != settled


def test_last_ours_never_returns_a_foreign_blob(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=7, known=legacy.token("c"))
    own = legacy.last_ours("c", revision=7, known=token)
    assert own is not None
    assert own.document == document("a")
    written_by_others(legacy, "theirs")
    after = legacy.last_ours("c", revision=7, known=token)
    assert after is None or after.document == document("a")


def test_a_blob_that_is_no_state_is_unreadable_and_says_where(legacy: LegacyStore) -> None:
    token = legacy.save("c", document("a"), revision=1, known=legacy.token("c"))
    written_by_others(legacy, "b")
    if isinstance(legacy, ChunkStore):
        MemoryChunk.objects.update(content='{"conversation_history": 5}')
    elif legacy.model is Entry:
        Entry.objects.filter(pk=Entry.objects.latest("pk").pk).update(payload="{")
    elif legacy.model is TextSession:
        TextSession.objects.update(payload="{")
    else:
        AssistantSession.objects.update(data=[1])
    with pytest.raises(UnreadableState, match="holds no state: "):
        legacy.load("c")
    (blob,) = legacy.list_foreign("c", token, legacy.foreign_ids("c", token))
    assert blob.stored is None
    assert blob.problem


def test_a_blob_beside_a_row_is_a_state_or_nothing_or_unreadable(
    legacy: LegacyStore,
) -> None:
    assert legacy.last_ours_from(None, known="a token") is None
    spoilt = '{"conversation_history": 5}'
    with pytest.raises(UnreadableState, match="holds no state: "):
        legacy.last_ours_from(f"5 {spoilt}" if isinstance(legacy, ChunkStore) else spoilt, known="")


def test_a_foreign_key_on_the_owner_takes_users_alone(legacy: LegacyStore) -> None:
    """All these tables have one; what each store says is what the database does."""
    assert legacy.takes_any_owner() is False


def test_blobs_are_counted_with_their_bytes(legacy: LegacyStore) -> None:
    assert legacy.blobs() == Blobs(0, 0)
    for name, line in (("c", "a"), ("d", "žluť" * 10)):
        legacy.save(name, document(line))
    expected = sum(len(document(line).to_json()) for line in ("a", "žluť" * 10))
    found = legacy.blobs()
    assert found.count == 2
    # A JSON column keeps its own spelling of the same value.
    assert found.bytes == expected or not isinstance(legacy, ChunkStore)
    assert expected / 2 < found.bytes < expected * 2
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
    assert set(legacy.tables) <= set(tables)


def test_leftovers_that_no_load_reads_are_counted(legacy: LegacyStore) -> None:
    assert legacy.leftovers() == Leftovers()
    for line in ("a", "b", "c"):
        legacy.save("c", document(line))
    legacy.save("d", document("a"))
    legacy.save("gone", document("late"))
    ConversationTombstone.rows.create(
        conversation_id="gone", deleted_at=timezone.now(), reason="deleted"
    )
    late = 2 * len(document("a").to_json())
    overtaken, size = (2, late) if keeps_every_blob(legacy) else (0, 0)
    assert legacy.leftovers() == Leftovers(overtaken, overtaken_bytes=size, of_deleted=1)


def keeps_every_blob(legacy: LegacyStore) -> bool:
    return isinstance(legacy, ChunkStore | AppendedRows)


def test_owner_and_claim(legacy: LegacyStore) -> None:
    user = UserFactory()
    assert legacy.owner("c") == (False, None)
    legacy.save("c", document("a"))
    assert legacy.owner("c") == (True, None)
    legacy.claim("c", str(user.pk))
    assert legacy.owner("c") == (True, str(user.pk))
    assert legacy.conversations_of(str(user.pk)) == ["c"]
    assert held(legacy) == document("a")


def test_rewriting_reaches_every_version_that_is_held(legacy: LegacyStore) -> None:
    legacy.save("c", document("secret"), revision=1)
    token = legacy.save("c", document("secret", "b"), revision=2)
    legacy.save("d", document("secret"), revision=1)

    changed: list[Document] = []

    def change(found: Document) -> Document | None:
        changed.append(found)
        return Document(found.fields, messages("gone", *["b"] * (len(found.messages) - 1)), [])

    token = legacy.rewrite("c", change, known=token)
    assert token == legacy.token("c", token)
    assert len(changed) == (2 if keeps_every_blob(legacy) else 1)
    assert held(legacy) == document("gone", "b")
    assert held(legacy, "d") == document("secret")
    assert legacy.rewrite("c", lambda found: None, known=token) == token


def test_ids_come_in_order_and_by_batches(legacy: LegacyStore) -> None:
    for name in ("b", "a", "c", "a"):
        legacy.save(name, document("x"))
    assert legacy.ids() == ["a", "b", "c"]
    assert legacy.ids(limit=2) == ["a", "b"]
    assert legacy.ids(after="b") == ["c"]


# JSONFieldStore's own


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_a_json_column_cannot_hold_is_refused_before_any_sql(value: float) -> None:
    with pytest.raises(InvalidState, match="cannot hold NaN"):
        JSONFieldStore(JSON).save("c", document(last_tool_result=value))


@pytest.mark.parametrize("text", ["\x00", "\ud800"])
def test_a_value_that_jsonb_cannot_hold_is_refused_before_any_sql(text: str) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite keeps JSON as text")
    for place in ({"a": [text]}, {text: 1}):
        with pytest.raises(InvalidState, match="cannot hold NUL or lone surrogates"):
            JSONFieldStore(JSON).save("c", document(last_tool_result=place))
    JSONFieldStore(JSON).save("c", document("\\u0000 \U0001f600"))
    assert held(JSONFieldStore(JSON)) == document("\\u0000 \U0001f600")


def test_one_row_holds_one_conversation_and_counts_its_version() -> None:
    """By more than one, so that a host that counts up what it read is told from us."""
    store = JSONFieldStore(JSON)
    last = 0
    for turn in range(20):
        store.save("c", document(str(turn)))
        session = AssistantSession.objects.get()
        assert session.session_key == "c"
        assert session.version == 1 if turn == 0 else session.version > last + 1
        last = session.version


def wrap(data: dict[str, Any]) -> dict[str, Any]:
    return {"v": 1, "state": data}


def unwrap(data: dict[str, Any]) -> Any:
    return data["state"]


def test_a_host_may_keep_another_shape_of_json() -> None:
    mapping = JSON | {
        "to_state": "tests.conformance.test_stores.unwrap",
        "from_state": "tests.conformance.test_stores.wrap",
    }
    store = JSONFieldStore(mapping)
    store.save("c", document("a"))
    assert AssistantSession.objects.get().data == {"v": 1, "state": document("a").to_dict()}
    assert held(store) == document("a")
    AssistantSession.objects.update(data={"other": 1})
    with pytest.raises(UnreadableState, match="holds no state"):
        store.load("c")


# What only some stores have


@pytest.mark.parametrize("version", ["counter", "changed_at", "stamp", "etag"])
def test_a_version_of_any_type_changes_with_every_save_and_equals_the_probe(
    version: str,
) -> None:
    store = JSONFieldStore(VERSIONED | {"version": version})
    Tables().save("c", document("a"))
    tokens = []
    for line in ("a", "b", "b"):
        tokens.append(store.save("c", document(line)))
        row = find_row("c", token_sql=store.token_sql())
        assert row is not None
        stored = store.load("c")
        assert stored is not None
        assert (
            tokens[-1] == store.token("c") == store.token_of(token_value(row), "") == stored.version
        )
    assert len(set(tokens)) == 3


def test_a_hosts_times_order_its_list() -> None:
    store = JSONFieldStore(VERSIONED)
    for name in ("a", "c", "b"):
        store.save(name, document(name))
    found = store.list(limit=2)
    assert [summary.conversation_id for summary in found] == ["b", "c"]
    last = found[-1]
    assert last.updated_at is not None
    behind = store.list(before=(last.updated_at, last.conversation_id))
    assert [summary.conversation_id for summary in behind] == ["a"]


def test_a_chunk_that_is_held_and_cannot_be_read_is_an_error_not_a_gap() -> None:
    store = ChunkStore()
    token = store.save("c", document("a"), revision=3)
    assert store.last_ours("c", revision=2, known=token) is None
    MemoryChunk.objects.update(content="{")
    with pytest.raises(UnreadableState, match="legacy chunk"):
        store.last_ours("c", revision=3, known=token)
    with pytest.raises(UnreadableState, match="legacy chunk"):
        store.rewrite("c", lambda document: document, known="")


def test_the_condition_of_being_settled_holds_where_the_token_does(legacy: LegacyStore) -> None:
    """What the database alone can tell, it tells as Python does, also behind a foreign write."""
    condition = legacy.token_unchanged_sql()
    if condition is None:
        assert connection.vendor == "sqlite", "PostgreSQL digests what it holds"
        return
    written_by_others(legacy, "a")
    token = legacy.mark_ingested("c", revision=1, known="", foreign_ids=legacy.foreign_ids("c", ""))
    row = ConversationState.rows.create(
        conversation_id="c",
        legacy_token=token,
        messages_digest=bytes(16),
        state_digest=bytes(32),
        created_at=timezone.now(),
        updated_at=timezone.now(),
    )

    def holds() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT 1 FROM conversation_states WHERE id = %s AND {condition}", [row.pk]
            )
            return cursor.fetchone() is not None

    assert holds()
    written_by_others(legacy, "a", "b")
    assert not holds()


def test_a_version_that_postgresql_writes_otherwise_settles_nothing(db: None) -> None:
    store = JSONFieldStore({**VERSIONED, "version": "changed_at"})
    assert (store.token_unchanged_sql() is None) == (connection.vendor == "postgresql")
