"""A host's integers, UUIDs and pairs of columns as ids: one spelling each, found by their index."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connection, models, transaction
from django.test import override_settings
from django.test.utils import isolate_apps
from django.utils import timezone

from conversations import storage
from conversations.content.document import Document
from conversations.exceptions import (
    ConversationNotFound,
    InvalidOwner,
    InvalidState,
    StorageUnavailable,
)
from conversations.models import ConversationState, ConversationTombstone
from conversations.rollout.sync import Action, sync
from conversations.routing.ids import only_in_legacy
from conversations.state import AgentState
from conversations.stores.jsonfield.rows import _needs_a_value
from conversations.stores.normalized import NormalizedStore, find_row
from conversations.stores.registry import configured_store
from conversations.stores.sql.expressions import NEVER
from conversations.stores.types import IdRefused, Leftovers
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import failing
from tests.storage.test_statements import statements
from tests.support import plans
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.hostshapes.models import (
    Assistant,
    Chat,
    History,
    Session,
    Snapshot,
    Thread,
    Visit,
)
from tests.support.hostshapes.shapes import SHAPES, Shape
from tests.support.scratch import plain_connection
from tests.support.tables import Tables

pytestmark = pytest.mark.django_db(transaction=True)

BY_INTEGER, BY_UUID = "a numbered chat", "a session with a UUID"
BY_USER, BY_PAIR = "a history per user", "a thread per user and assistant"
ADDED = "snapshots of a chat"


def host(name: str) -> Any:
    return override_settings(CONVERSATIONS={"LEGACY": SHAPES[name].mapping})


@pytest.fixture(params=[BY_INTEGER, BY_UUID, BY_USER, BY_PAIR, ADDED])
def shape(request: pytest.FixtureRequest) -> Iterator[Shape]:
    with host(request.param):
        yield SHAPES[request.param]


def store() -> Any:
    return configured_store()


def others(name: str) -> list[str]:
    """Return spellings that a column might take for the same value, and what is no value at all."""
    found = [f"0{name}", f"+{name}", f" {name}", f"{name} ", f"{name}\n", f"{name}.0", "abc", "-0"]
    found += [name.replace("-", ""), name.upper(), f"{{{name}}}", f"urn:uuid:{name}", "9" * 30]
    found += [f"{name}:", f":{name}", f"{name}:{name}", name.split(":")[0], "١", f"{name}\u00a0"]
    return [each for each in found if each != name]


def test_one_spelling_names_a_row_and_every_other_nothing(shape: Shape) -> None:
    name = shape.make(UserFactory(), "a")
    legacy = store()
    assert legacy.load(name) is not None
    assert legacy.owner(name)[0]
    for other in others(name):
        assert legacy.load(other) is None, other
        assert legacy.owner(other) == (False, None)
        assert legacy.token(other) == "-"
        assert not legacy.delete(other)
        assert legacy.sizes([other]) == {}
        assert [look.held for look in legacy.read_many([other, name])] == [False, True]
        with forced_phase(Phase.LEGACY):
            assert texts(storage.load_state(other)) == []
    assert shape.read(name) == ["a"]


def test_the_database_takes_the_same_spelling_as_we_do(shape: Shape) -> None:
    """The statement that reads a row of the tables finds what a look by itself finds."""
    name = shape.make(UserFactory(), "a")
    legacy = store()
    for other in [name, *others(name)]:
        Tables().save(other, Document.from_dict({}))
        row = find_row(other, token_sql=legacy.token_sql())
        assert row is not None
        assert legacy.token_of(vars(row)["token_value"], "") == legacy.token(other), other


def test_ids_are_given_in_the_one_spelling(shape: Shape) -> None:
    names = {shape.make(UserFactory(), "a") for _ in range(12)}
    legacy = store()
    assert set(legacy.ids()) == names
    paged: list[str] = []
    while page := legacy.ids(after=paged[-1] if paged else "", limit=5):
        paged += page
    assert (len(paged), set(paged)) == (12, names)
    assert set(only_in_legacy()) == names
    assert {summary.conversation_id for summary in legacy.list()} == names
    last = legacy.last_key()
    assert set(legacy.ids_between(None, last)) == names
    middle = legacy.key_after(None, last, count=6)
    halves = [*legacy.ids_between(None, middle), *legacy.ids_between(middle, last)]
    assert set(halves) == names
    assert set(legacy.ids_written_since(legacy.mark())) <= names
    assert legacy.sizes(list(names)).keys() == names


@pytest.mark.parametrize("added", [True, False])
def test_a_row_without_an_id_is_no_conversation(added: bool) -> None:
    """A chat before its user logged in: no sync may fail over it for ever."""
    mapping = {"conversation_id": "user", "owner": "user"}
    mapping |= {"model": "hostshapes.Snapshot", "state": "blob", "newest_by": "created_at"}
    if not added:
        mapping |= {"model": "hostshapes.Chat", "state": "payload"}
        del mapping["newest_by"]
    user, assistant = UserFactory(), Assistant.objects.create(name="a")
    with override_settings(CONVERSATIONS={"LEGACY": mapping}):
        for owner in (None, user, None):
            if added:
                Snapshot.objects.create(chat=uuid.uuid4(), user=owner, blob="{}")
            else:
                Chat.objects.create(user=owner, assistant=assistant, payload="{}")
        legacy, names = store(), [str(user.pk)]
        assert legacy.ids() == names
        assert legacy.ids_between(None, legacy.last_key()) == names
        assert [one.conversation_id for one in legacy.list()] == names
        assert list(legacy.ids_written_since(legacy.mark())) in (names, [])
        assert (legacy.blobs().count, legacy.overtaken().count) == (1, 0)
        assert [one.action for one in sync("tables")] == [Action.TAKEN_IN]


def test_a_table_that_is_down_is_no_table_that_holds_nothing(shape: Shape) -> None:
    """Health asks for an id that no column can have, too."""
    table = store().model._meta.db_table
    with failing(lambda sql: table in sql):
        # 3,000,000,000 is more than some of the columns hold: Django would not ask for it.
        for name in ("", "abc", "1", "3000000000"):
            with pytest.raises(DatabaseError):
                store().owner(name)
            with pytest.raises(StorageUnavailable):
                storage.load_state(name or "x")


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
@pytest.mark.parametrize("name", [BY_INTEGER, BY_UUID, BY_USER, BY_PAIR])
def test_a_row_stays_locked_between_its_token_and_the_write_behind_it(name: str) -> None:
    with host(name):
        made = SHAPES[name].make(UserFactory(), "a")
        table = store().model._meta.db_table
        with plain_connection(connection) as other, transaction.atomic():
            store().token(made)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE NOWAIT")
            other.rollback()
            # But rows that refer to it may come.
            other.execute(f"SELECT 1 FROM {table} FOR KEY SHARE NOWAIT")


def test_a_list_goes_on_by_pages(shape: Shape) -> None:
    names = [shape.make(UserFactory(), "a") for _ in range(5)]
    found, before = [], None
    while page := store().list(before=before, limit=2):
        found += [summary.conversation_id for summary in page]
        before = (page[-1].updated_at or NEVER, page[-1].conversation_id)
    assert (len(found), set(found)) == (5, set(names))
    # What no page gave goes on nowhere, and is no error.
    for cursor in ("abc", ""):
        assert store().list(before=(NEVER, cursor)) == []


def test_a_text_is_an_id_where_its_column_has_room_for_it() -> None:
    with host("a visit of nobody"), forced_phase(Phase.LEGACY):
        longest = "x" * 40
        storage.save_state(longest, state("a"))
        assert Visit.objects.get().session_key == longest
        assert texts(storage.load_state(longest)) == ["a"]
        for other in (f"{longest}x", longest[:-1]):
            assert not storage.conversation_exists(other)
            assert storage.load_state(other) == AgentState()
        with pytest.raises(IdRefused, match="can be no id in hostshapes"):
            storage.save_state(f"{longest}x", state("a"))
        assert Visit.objects.count() == 1
    by_text = SHAPES["a visit of nobody"].mapping | {"conversation_id": "payload"}
    with override_settings(CONVERSATIONS={"LEGACY": by_text | {"state": "session_key"}}):
        # A column without a limit.
        assert store().host_ids.values("x" * 300) == ("x" * 300,)


@isolate_apps("tests.support.hostshapes")
def test_a_new_row_needs_what_neither_the_host_nor_the_database_gives() -> None:
    class Row(models.Model):  # noqa: DJ008
        nothing = models.IntegerField()
        null = models.IntegerField(null=True)
        default = models.IntegerField(default=0)
        from_database = models.IntegerField(db_default=1)
        made = models.DateTimeField(auto_now_add=True)
        changed = models.DateTimeField(auto_now=True)
        computed = models.GeneratedField(
            expression=models.F("nothing") + 1,
            output_field=models.IntegerField(),
            db_persist=True,
        )

        class Meta:
            app_label = "hostshapes"

    fields = Row._meta.concrete_fields
    assert [field.name for field in fields if _needs_a_value(field)] == ["nothing"]


def test_a_list_of_both_stores_goes_on_by_pages(shape: Shape) -> None:
    """Where a table keeps no time, its own conversations come last, with any ids."""
    user = UserFactory()
    chats = 1 if shape is SHAPES[BY_USER] else 6
    names = [shape.make(user, "a") for _ in range(chats)]
    list(sync("tables", names[1::2]))
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE, Phase.NEW_ONLY):
        with forced_phase(phase):
            found, before = [], None
            while True:
                page = storage.list_conversations(user, before=before, limit=1)
                found += [one.conversation_id for one in page]
                before = page.next
                if before is None:
                    break
            assert (len(found), set(found)) == (chats, set(names))


def test_an_id_that_the_host_cannot_hold_is_refused() -> None:
    """Nothing is written: neither there nor in the tables, in every phase that writes legacy."""
    for name in (BY_INTEGER, BY_USER, BY_PAIR):
        user = UserFactory()
        for phase in list(Phase)[:-1]:
            with host(name), forced_phase(phase):
                with pytest.raises(IdRefused, match="make the row of hostshapes"):
                    storage.create_new_conversation(user)
                for call in (storage.save_state, storage.append_messages):
                    what: Any = state("a") if call is storage.save_state else messages("a")
                    options: Any = {} if call is storage.save_state else {"create": True}
                    with pytest.raises(InvalidState, match="conversation_id: can be no id in"):
                        call("abc", what, **options)
    assert not ConversationState.rows.exists()


def test_where_the_tables_alone_are_written_any_id_is_taken() -> None:
    """Back again, it is behind in legacy for good; and stays usable."""
    with host(BY_INTEGER):
        with forced_phase(Phase.NEW_ONLY):
            name = storage.create_new_conversation(UserFactory())
        for phase in (Phase.NEW_PRIMARY, Phase.NEW_READS, Phase.DUAL_WRITE):
            with forced_phase(phase):
                assert storage.append_messages(name, messages("a"))["stores"] == ["tables"]
        with forced_phase(Phase.LEGACY):
            with pytest.raises(IdRefused):
                storage.append_messages(name, messages("a"))
            with pytest.raises(IdRefused):
                storage.append_messages(name, messages("a"), keys=["k"])
        (one,) = sync("legacy", [name])
        assert (one.action, one.reason_class) == (Action.FAILED, "invalid")
        assert len(texts(storage.load_state(name))) == 3


def test_a_uuid_of_ours_is_made_where_uuids_are_ids() -> None:
    user = UserFactory()
    with host(BY_UUID), forced_phase(Phase.LEGACY):
        name = storage.create_new_conversation(user)
        assert Session.objects.get(pk=name).user == user
        with pytest.raises(IdRefused, match="needs user: make the row first"):
            storage.create_new_conversation()
        with pytest.raises(IdRefused, match="can be no id"):
            storage.save_state(str(uuid.uuid4()).upper(), state("a"), user)
    with host(ADDED), forced_phase(Phase.LEGACY):
        assert storage.create_new_conversation(user) in store().ids()


def test_a_number_that_the_database_gives_is_not_taken_before() -> None:
    """A row of ours would be in the way of the host's next one."""
    user, assistant = UserFactory(), Assistant.objects.create(name="a")
    with host(BY_INTEGER), forced_phase(Phase.LEGACY):
        made = Chat.objects.create(user=user, assistant=assistant)
        with pytest.raises(IdRefused, match=r"is no id that hostshapes\.Chat has"):
            storage.save_state(str(made.pk + 1), state("a"), user)
        with pytest.raises(IdRefused, match="needs assistant"):
            storage.save_state(str(made.pk - 1), state("a"), user)
        assert Chat.objects.create(user=user, assistant=assistant).pk > made.pk


def test_an_id_that_names_a_user_is_that_users() -> None:
    """Also where no row is there yet, and in phases that do not write legacy."""
    user, other = UserFactory(), UserFactory()
    for phase in Phase:
        with host(BY_USER), forced_phase(phase):
            name = str(user.pk)
            for call in (storage.save_state, storage.claim_conversation):
                rest: Any = (state("b"), other) if call is storage.save_state else (other,)
                with pytest.raises(ConversationNotFound):
                    call(name, *rest)
            storage.save_state(name, state("a"))
            assert texts(storage.load_state(name, user_id=user)) == ["a"]
            assert texts(storage.load_state(name, user_id=other)) == []
            assert not storage.delete_conversation(name, other)
            with pytest.raises(InvalidOwner, match="there is no user 999999"):
                storage.save_state("999999", state("a"))
        NormalizedStore().delete(name)
        History.objects.all().delete()


@pytest.mark.parametrize("name", [BY_INTEGER, BY_UUID, ADDED])
def test_a_save_and_a_redaction_without_a_user_leave_a_chat_its_owner(name: str) -> None:
    user = UserFactory()
    for phase in Phase:
        with host(name), forced_phase(phase):
            made = SHAPES[name].make(user, "a")
            storage.save_state(made, state("a", "b"))
            storage.append_messages(made, messages("c"))
            storage.redact_message(made, 1)
            assert store().owner(made) == (True, str(user.pk))
            assert texts(storage.load_state(made, user_id=user)) == ["[redacted]", "b", "c"]


def test_a_chat_per_user_is_cleared_and_begun_anew() -> None:
    """Deleting takes the id, and so the user's only chat, for ever."""
    user = UserFactory()
    name = str(user.pk)
    with host(BY_USER), forced_phase(Phase.DUAL_WRITE):
        storage.save_state(name, state("a"), user)
        storage.clear_conversation(name, user)
        storage.append_messages(name, messages("b"), user_id=user)
        assert texts(storage.load_state(name, user_id=user)) == ["b"]


def test_a_user_is_deleted_with_their_chats(shape: Shape) -> None:
    user, other = UserFactory(), UserFactory()
    mine, theirs = shape.make(user, "a"), shape.make(other, "a")
    with forced_phase(Phase.DUAL_WRITE):
        assert store().conversations_of(str(user.pk)) == [mine]
        user.delete()
        assert list(store().ids()) == [theirs]
        assert store().owner(mine) == (False, None)
        assert list(ConversationTombstone.rows.values_list("conversation_id", flat=True)) == [mine]


def test_late_writes_of_deleted_ones_are_counted(shape: Shape) -> None:
    name = shape.make(UserFactory(), "a")
    before = store().leftovers()
    ConversationTombstone.rows.create(
        conversation_id=name, deleted_at=timezone.now(), reason="deleted"
    )
    rows = store()._rows().count()
    assert store().leftovers() == Leftovers(
        before.overtaken, before.overtaken_bytes, of_deleted=rows
    )


# Plans


def many(name: str) -> tuple[str, list[str]]:
    """Fill a table with rows enough that plans matter. Returns: one id, and a few of them."""
    users = get_user_model().objects.bulk_create(
        [get_user_model()(username=f"many{number}") for number in range(3000)]
    )
    assistant = Assistant.objects.create(name="a")
    made: dict[str, Callable[[Any], Any]] = {
        BY_INTEGER: lambda user: Chat(user=user, assistant=assistant, payload="{}"),
        BY_UUID: lambda user: Session(user=user, data={}),
        BY_USER: lambda user: History(user=user, history=[]),
        BY_PAIR: lambda user: Thread(user=user, assistant=assistant, state={}),
        ADDED: lambda user: Snapshot(chat=uuid.uuid4(), user=user, blob="{}"),
    }
    rows = [made[name](user) for user in users]
    type(rows[0])._base_manager.bulk_create(rows)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    ids = list(store().ids(limit=1000))
    return ids[700], ids[700:720]


def test_the_hosts_own_index_finds_a_conversation(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For loads, saves, lists, the statement at once, and the batches of a sync."""
    (name,) = [key for key, value in SHAPES.items() if value is shape]
    one, some = many(name)
    legacy = store()
    table = legacy.model._meta.db_table
    monkeypatch.setattr(plans, "OUR_TABLES", {table})
    owner = legacy.owner(one)[1]
    with forced_phase(Phase.DUAL_WRITE):
        calls: dict[str, Callable[[], Any]] = {
            "save": lambda: storage.append_messages(one, messages("a")),
            "load": lambda: storage.load_state(one),
            "load by itself": lambda: legacy.load(one),
            "token": lambda: legacy.token(one),
            "owner": lambda: legacy.owner(one),
            "list": lambda: storage.list_conversations(owner),
            "everybody's list": lambda: None if legacy._time_name else legacy.list(limit=20),
            "ids": lambda: legacy.ids(after=one, limit=20),
            "looks": lambda: legacy.read_many(some),
            "sizes": lambda: legacy.sizes(some),
            "batch": lambda: legacy.ids_between(*_range(legacy), settled=None),
            "next batch": lambda: legacy.key_after(_range(legacy)[0], _range(legacy)[1], count=20),
            "sync": lambda: list(sync("tables", some)),
        }
        found = {what: plans.uses_of(call) for what, call in calls.items()}
        whole = {what: used for what, used in found.items() if f"scan {table}" in used}
        assert whole == {}
        assert all(found[what] for what in ("load", "load by itself", "looks", "batch"))
        load = " ".join(statements(lambda: storage.load_state(one)))
        assert load.count(f'FROM "{table}" host') >= 1


def _range(legacy: Any) -> tuple[Any, Any]:
    low = legacy.key_after(None, legacy.last_key(), count=500)
    return low, legacy.key_after(low, legacy.last_key(), count=50)
