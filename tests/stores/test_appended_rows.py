"""A host's table to which every write adds a row: what is newest, whose it is, and what is kept."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.test import override_settings
from django.test.utils import isolate_apps
from django.utils import timezone

from conversations import storage
from conversations.content.document import Document
from conversations.exceptions import InvalidState, UnreadableState
from conversations.models import ConversationConflict, ConversationState
from conversations.rollout.gates.installation import drill, round_trip
from conversations.rollout.sync import runs, sync
from conversations.rollout.verification import verify
from conversations.stores.jsonfield.appended_rows import AppendedRows
from conversations.stores.registry import configured_store
from conversations.stores.types import Blobs, Leftovers, Pruned
from flags.gates import Step
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.hostshapes.models import (
    Assistant,
    Chat,
    Entry,
    History,
    Session,
    Snapshot,
    Thread,
)
from tests.support.hostshapes.shapes import SHAPES, Shape

pytestmark = pytest.mark.django_db(transaction=True)

SHAPE = SHAPES["snapshots of a chat"]


@pytest.fixture(autouse=True)
def _appended() -> Iterator[None]:
    with override_settings(CONVERSATIONS={"LEGACY": SHAPE.mapping}):
        yield


def rows(name: str) -> list[list[Any]]:
    found = Snapshot.objects.filter(chat=name).order_by("created_at")
    return [
        [message["content"] for message in json.loads(row.blob)["conversation_history"]]
        for row in found
    ]


def test_a_save_adds_a_row_and_changes_none(phase: Phase) -> None:
    user = UserFactory()
    name = SHAPE.make(user, "a", "b")
    before = list(Snapshot.objects.order_by("pk").values())
    storage.append_messages(name, messages("c"), user_id=user)
    assert list(Snapshot.objects.order_by("pk").values())[:2] == before
    if phase != Phase.NEW_ONLY:
        assert rows(name) == [["a"], ["a", "b"], ["a", "b", "c"]]
        added = Snapshot.objects.latest("pk")
        assert (added.user, added.model_name) == (user, "m")
        assert json.loads(added.blob).keys() == {"conversation_history"}


def test_our_row_is_the_newest_also_under_wrong_clocks() -> None:
    name = SHAPE.make(UserFactory(), "a")
    ahead = timezone.now() + timedelta(days=1)
    Snapshot.objects.update(created_at=ahead)
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE):
        with forced_phase(phase):
            storage.append_messages(name, messages(phase.label))
            assert SHAPE.read(name)[-1] == phase.label
    assert Snapshot.objects.latest("pk").created_at > ahead


def test_the_newest_row_is_taken_in_under_any_key() -> None:
    """Also among many at once, by a sync and by a verification."""
    names = [SHAPE.make(UserFactory(), "a", "b") for _ in range(3)]
    for name in names:
        first = Snapshot.objects.filter(chat=name).earliest("pk")
        Snapshot.objects.filter(pk=first.pk).update(version=1)
    with override_settings(CONVERSATIONS={"LEGACY": SHAPE.mapping | {"newest_by": "version"}}):
        looks = {look.conversation_id: look.stored for look in configured_store().read_many(names)}
        assert [len(looks[name].document.messages) for name in names] == [1, 1, 1]
        list(runs.work(runs.begin("tables")))
        with forced_phase(Phase.NEW_ONLY):
            assert [texts(storage.load_state(name)) for name in names] == [["a"]] * 3
        assert all(found.in_order for found in verify())


def test_lists_are_in_the_order_of_the_newest_rows() -> None:
    user = UserFactory()
    names = [SHAPE.make(user, "a", "b") for _ in range(3)]
    times = [timezone.now() - timedelta(hours=hours) for hours in (2, 1, 3)]
    for name, time in zip(names, times, strict=True):
        newest = Snapshot.objects.filter(chat=name).latest("pk")
        Snapshot.objects.filter(chat=name).update(created_at=time - timedelta(days=1))
        Snapshot.objects.filter(pk=newest.pk).update(created_at=time)
    with forced_phase(Phase.LEGACY):
        page = storage.list_conversations(user)
        assert [one.conversation_id for one in page] == [names[1], names[0], names[2]]
        assert [one.updated_at for one in page] == [times[1], times[0], times[2]]
    since = (timezone.now() - timedelta(minutes=90)).isoformat()
    assert list(configured_store().ids_written_since(since)) == [names[1]]


@isolate_apps("tests.support.hostshapes")
def test_values_of_unique_columns_are_not_copied() -> None:
    class Row(models.Model):  # noqa: DJ008
        chat = models.IntegerField()
        label = models.CharField(max_length=9)
        token = models.UUIDField(unique=True)
        at = models.IntegerField()
        twice = models.GeneratedField(
            expression=models.F("chat") * 2, output_field=models.IntegerField(), db_persist=True
        )

        class Meta:
            app_label = "hostshapes"

    store = AppendedRows.__new__(AppendedRows)
    store.model, store.newest_name = Row, "at"
    row = Row(pk=1, chat=2, label="x", token=uuid.uuid4(), at=3)
    assert store._as_in(row) == {"chat": 2, "label": "x"}


def test_numbers_may_say_which_is_newest() -> None:
    mapping = {
        "model": "hostshapes.Snapshot",
        "conversation_id": "chat",
        "owner": "user",
        "state": "blob",
        "newest_by": "version",
    }
    with override_settings(CONVERSATIONS={"LEGACY": mapping}):
        store: Any = configured_store()
        name = str(uuid.uuid4())
        for number in range(3):
            store.save(name, Document.from_dict(state(str(number)).to_dict()))
            assert Snapshot.objects.latest("pk").version == number + 1
        assert store.ids_between(0, store.last_key(), settled=timezone.now()) == [name]
        assert [one.updated_at for one in store.list()] == [None]


def test_the_column_of_the_newest_may_be_that_of_the_latest_activity() -> None:
    mapping = SHAPE.mapping | {"updated_at": "created_at"}
    with override_settings(CONVERSATIONS={"LEGACY": mapping}), forced_phase(Phase.LEGACY):
        name = SHAPE.make(UserFactory(), "a")
        ahead = timezone.now() + timedelta(days=1)
        Snapshot.objects.update(created_at=ahead)
        storage.append_messages(name, messages("b"))
        assert SHAPE.read(name) == ["a", "b"]
        assert [one.updated_at > ahead for one in configured_store().list()] == [True]


def test_rows_without_an_owner_are_added_too() -> None:
    mapping = {name: value for name, value in SHAPE.mapping.items() if name != "owner"}
    with override_settings(CONVERSATIONS={"LEGACY": mapping}):
        name, user = SHAPE.make(UserFactory(), "a"), UserFactory()
        before = list(Snapshot.objects.order_by("pk").values())
        with forced_phase(Phase.DUAL_WRITE):
            storage.claim_conversation(name, user)
            assert texts(storage.load_state(name, user_id=user)) == ["a"]
            assert list(Snapshot.objects.order_by("pk").values()) == before


def test_what_legacy_never_held_is_taken_in_whole_and_what_it_lost_is_not_held() -> None:
    with forced_phase(Phase.NEW_ONLY):
        name = storage.create_new_conversation(UserFactory())
        storage.append_messages(name, messages("a"))
        owner = ConversationState.rows.get().user_id
        for said in (["b"], ["b", "c"], ["d"]):
            blob = json.dumps({"conversation_history": messages(*said)})
            Snapshot.objects.create(chat=name, user_id=owner, blob=blob)
        assert sorted(texts(storage.load_state(name))) == ["a", "b", "c", "d"]
    store: Any = configured_store()
    token = store.token(name)
    assert store.last_ours(name, revision=1, known=token) is not None
    assert store.last_ours(name, revision=1, known="-") is None
    assert list(store.list_foreign(name, "", "-")) == []
    Snapshot.objects.all().delete()
    assert store.last_ours(name, revision=1, known=token) is None


def test_every_row_of_old_code_is_taken_in_and_counted_once() -> None:
    """Also one that was overtaken before anybody looked."""
    with forced_phase(Phase.DUAL_WRITE):
        name = SHAPE.make(UserFactory(), "a")
        storage.append_messages(name, messages("ours"))
        SHAPE.write(name, "a", "ours", "first")
        SHAPE.write(name, "a", "ours", "second")
        assert sorted(texts(storage.load_state(name))) == ["a", "first", "ours", "second"]
        again = storage.load_state(name)
        assert texts(again) == texts(storage.load_state(name))
        list(sync("tables"))
        list(sync("legacy"))
        assert sorted(SHAPE.read(name)) == ["a", "first", "ours", "second"]
        assert all(one.in_order for one in verify())


def test_a_row_added_in_between_is_still_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that old code adds after we looked, and before ours."""
    name = SHAPE.make(UserFactory(), "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
        insert = AppendedRows._insert

        def late(self: Any, values: dict[str, Any], newest: Any) -> None:
            monkeypatch.setattr(AppendedRows, "_insert", insert)
            SHAPE.write(name, "a", "b", "theirs")
            insert(self, values, Snapshot.objects.latest("created_at"))

        monkeypatch.setattr(AppendedRows, "_insert", late)
        storage.append_messages(name, messages("c"))
        assert sorted(texts(storage.load_state(name))) == ["a", "b", "c", "theirs"]
        list(sync("legacy"))
        assert all(one.in_order for one in verify())


def test_a_host_that_prunes_its_rows_loses_nothing_of_the_tables() -> None:
    name = SHAPE.make(UserFactory(), "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
        SHAPE.write(name, "a", "b", "c")
        Snapshot.objects.exclude(pk=Snapshot.objects.latest("created_at").pk).delete()
        assert texts(storage.load_state(name)) == ["a", "b", "c"]
        Snapshot.objects.all().delete()
        assert texts(storage.load_state(name)) == ["a", "b", "c"]
        assert list(sync("tables"))
        assert texts(storage.load_state(name)) == ["a", "b", "c"]


def test_a_pruned_newest_row_brings_no_earlier_one_back() -> None:
    """Hosts prune the newest row as well: the one that is newest then stands for all."""
    name = SHAPE.make(UserFactory(), "a", "b")
    legacy = configured_store()
    known = legacy.token(name)
    assert [one.reference for one in legacy.list_foreign(name, "", known)] == [
        str(key) for key in Snapshot.objects.order_by("pk").values_list("pk", flat=True)
    ]
    assert texts_of(legacy.last_ours(name, revision=1, known=known)) == ["a", "b"]
    row = Snapshot.objects.latest("pk")
    Snapshot.objects.filter(pk=row.pk).update(blob=row.blob.replace('"b"', '"c"'))
    assert legacy.last_ours(name, revision=1, known=known) is None
    SHAPE.write(name, "d")
    row.delete()
    (found,) = legacy.list_foreign(name, known, legacy.token(name))
    assert texts_of(found.stored) == ["d"]
    assert legacy.last_ours(name, revision=1, known=known) is None


def texts_of(stored: Any) -> list[str]:
    return [each["content"] for each in stored.document.messages]


def test_a_row_changed_in_place_is_seen() -> None:
    name = SHAPE.make(UserFactory(), "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
        newest = Snapshot.objects.latest("created_at")
        blob = json.dumps({"conversation_history": messages("a", "b", "in place")})
        Snapshot.objects.filter(pk=newest.pk).update(blob=blob)
        assert texts(storage.load_state(name)) == ["a", "b", "in place"]


def test_a_redaction_reaches_every_row_also_one_that_comes_late() -> None:
    name = SHAPE.make(UserFactory(), "a", "secret")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
        storage.redact_message(name, 2)
        SHAPE.write(name, "a", "secret", "b", "c")
        SHAPE.write(name, "a", "secret", "b", "d")
        assert sorted(texts(storage.load_state(name))) == ["[redacted]", "a", "b", "c", "d"]
        assert "secret" not in " ".join(Snapshot.objects.values_list("blob", flat=True))
        list(sync("legacy"))
        assert all(one.in_order for one in verify())


def test_a_row_in_phase_legacy_is_taken_in_under_a_later_one_of_old_code() -> None:
    name = SHAPE.make(UserFactory(), "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
    with forced_phase(Phase.LEGACY):
        storage.append_messages(name, messages("ours"))
        SHAPE.write(name, "a", "b", "theirs")
    with forced_phase(Phase.DUAL_WRITE):
        assert sorted(texts(storage.load_state(name))) == ["a", "b", "ours", "theirs"]


def test_such_a_row_that_was_given_to_another_user_is_not_taken_in() -> None:
    user, other = UserFactory(), UserFactory()
    name = SHAPE.make(user, "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
    with forced_phase(Phase.LEGACY):
        storage.append_messages(name, messages("ours"))
    ours = Snapshot.objects.filter(pk=Snapshot.objects.latest("created_at").pk)
    ours.update(user=other)
    blob = json.dumps({"conversation_history": messages("a", "b", "theirs")})
    Snapshot.objects.create(chat=name, user=user, blob=blob)
    with forced_phase(Phase.DUAL_WRITE):
        with pytest.raises(UnreadableState, match="another owner"):
            storage.load_state(name, user_id=user)
        ours.update(user=user)
        found = storage.load_state(name, user_id=user)
    assert sorted(texts(found)) == ["a", "b", "ours", "theirs"]


def test_owners_of_the_rows_are_the_newest_ones_and_claims_reach_all() -> None:
    user = UserFactory()
    with forced_phase(Phase.LEGACY):
        name = storage.create_new_conversation()
        storage.append_messages(name, messages("a"))
        storage.claim_conversation(name, user)
        assert set(Snapshot.objects.values_list("user", flat=True)) == {user.pk}
        assert texts(storage.load_state(name, user_id=user)) == ["a"]
        assert [one.conversation_id for one in storage.list_conversations(user)] == [name]
        assert storage.delete_conversation(name, user)
        assert not Snapshot.objects.exists()


def test_a_claim_takes_no_row_from_another_user() -> None:
    user, other = UserFactory(), UserFactory()
    name = SHAPE.make(other, "a", "b")
    newest = Snapshot.objects.latest("created_at")
    Snapshot.objects.filter(pk=newest.pk).update(user=None)
    with forced_phase(Phase.LEGACY):
        storage.claim_conversation(name, user)
        owners = list(Snapshot.objects.order_by("pk").values_list("user", flat=True))
        assert owners == [other.pk, user.pk]


def test_a_conversation_of_many_rows_is_named_once() -> None:
    names = sorted(SHAPE.make(UserFactory(), "a", "b", "c") for _ in range(3))
    store: Any = configured_store()
    assert list(store.ids()) == names
    assert list(store.ids(limit=2)) == names[:2]
    assert list(store.ids(after=names[0])) == names[1:]


def test_a_row_that_cannot_be_read_is_set_aside_alone() -> None:
    name = SHAPE.make(UserFactory(), "a")
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages(name, messages("b"))
        Snapshot.objects.create(chat=name, user=Snapshot.objects.earliest("pk").user, blob="{")
        SHAPE.write(name, "a", "b", "c")
        assert texts(storage.load_state(name)) == ["a", "b", "c"]
        (record,) = ConversationConflict.rows.filter(kind="quarantined")
        assert record.reason.startswith("unreadable: ")


def test_a_run_meets_a_conversation_once() -> None:
    name = SHAPE.make(UserFactory(), "a", "b")
    Snapshot.objects.update(created_at=timezone.now() - timedelta(days=1))
    SHAPE.write(name, "a", "b", "c")
    store: Any = configured_store()
    keys = list(Snapshot.objects.order_by("pk").values_list("pk", flat=True))
    settled = timezone.now() - timedelta(hours=1)
    assert store.ids_between(None, keys[0], settled=settled) == [name]
    assert store.ids_between(keys[0], keys[-1], settled=settled) == []
    assert store.ids_between(keys[0], keys[-1]) == [name]
    assert store.met([name, str(uuid.uuid4()), "abc"], keys[0]) == {name}
    assert store.met([name], keys[0] - 1) == frozenset()


def test_overtaken_rows_are_counted_and_never_removed() -> None:
    """No row says who wrote it."""
    with forced_phase(Phase.DUAL_WRITE):
        name = storage.create_new_conversation()
        for text in "abc":
            storage.append_messages(name, messages(text))
    store: Any = configured_store()
    sizes = [len(blob) for blob in Snapshot.objects.order_by("pk").values_list("blob", flat=True)]
    assert store.overtaken() == Blobs(3, sum(sizes[:-1]))
    assert store.leftovers() == Leftovers(3, sum(sizes[:-1]))
    assert store.crowded([name], keep=0) == ()
    assert store.prune(name, keep=0, needed=0) == Pruned()
    assert Snapshot.objects.count() == 4


def test_the_database_digests_a_token_on_postgresql_alone() -> None:
    store: Any = configured_store()
    assert (store.token_unchanged_sql() is None) == (connection.vendor != "postgresql")


# Drills, which make an empty row where a save could make none


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("chats", [0, 2])
def test_a_drill_finds_an_id_in_every_shape_and_leaves_nothing(shape: Shape, chats: int) -> None:
    users = [UserFactory() for _ in range(2)]
    Assistant.objects.create(name="a")
    names = [shape.make(user, "a") for user in users[:chats]]
    models = (Session, Chat, History, Thread, Snapshot, Entry)
    before = [list(model._base_manager.order_by("pk").values()) for model in models]
    now = timezone.now()
    with override_settings(CONVERSATIONS={"LEGACY": shape.mapping}):
        steps = [(Phase.LEGACY, Phase.DUAL_WRITE), (Phase.NEW_READS, Phase.DUAL_WRITE)]
        results = [round_trip(Step(*steps[0], now, now)), drill(Step(*steps[1], now, now))]
        results.append(drill(Step(Phase.DUAL_WRITE, Phase.LEGACY, now, now)))
        assert [one.message for one in results if not one.passed] == []
    assert [list(model._base_manager.order_by("pk").values()) for model in models] == before
    assert not ConversationState.rows.exists()
    assert [shape.read(name) for name in names] == [["a"]] * chats


@pytest.mark.parametrize("column", ["title", "version"])
def test_a_drill_finds_a_free_text_or_number(column: str) -> None:
    """Where only the host can fill what a new row needs."""
    mapping = {
        "title": SHAPES["a session with a UUID"].mapping | {"conversation_id": "title"},
        "version": SHAPES["a thread per user and assistant"].mapping
        | {"conversation_id": "version", "version": None},
    }[column]
    for user in (UserFactory(), UserFactory()):
        assistant = Assistant.objects.create(name="a")
        Session.objects.create(user=user, title=str(user.pk))
        Thread.objects.create(user=user, assistant=assistant, version=user.pk)
    now = timezone.now()
    with override_settings(CONVERSATIONS={"LEGACY": mapping}):
        store: Any = configured_store()
        before = set(store.ids())
        with transaction.atomic():
            name = store.specimen()
            # What is unique beside the id cannot be made up: it is the id of a row that is there.
            assert (name in before) is (column == "version")
            assert set(store.ids()) == before | {name}
            transaction.set_rollback(True)
        assert round_trip(Step(Phase.LEGACY, Phase.DUAL_WRITE, now, now)).passed
        assert set(store.ids()) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a history per user", "there is nothing yet that a row of hostshapes.History can name"),
        ("a numbered chat", "there is no row yet to take assistant from"),
    ],
)
def test_where_nothing_can_be_made_a_drill_says_so(name: str, said: str) -> None:
    with (
        override_settings(CONVERSATIONS={"LEGACY": SHAPES[name].mapping}),
        pytest.raises(InvalidState, match=said),
    ):
        store: Any = configured_store()
        store.specimen()
