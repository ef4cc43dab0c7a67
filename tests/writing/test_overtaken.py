"""Overtaken blobs go, by a command or with a save, and nothing that is still read goes along."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.utils import timezone

from conversations.exceptions import ConversationNotFound, SyncRefused
from conversations.models import ConversationState
from conversations.rollout import findings, overtaken as overtaken_blobs
from conversations.rollout.overtaken import PrunedBlobs, prune_overtaken
from conversations.rollout.sync import sync
from conversations.rollout.sync.estimating import estimate
from conversations.rollout.verification import Kind, verify
from conversations.routing.standing import decide
from conversations.storage import append_messages, list_messages, load_state, save_state
from conversations.stores.chunks import overtaken
from conversations.stores.chunks.format import RESTORED_MARK, REVISION_MARK
from conversations.stores.chunks.overtaken import Placed
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.store import JSONFieldStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.machine.oldcode import OldSession
from tests.storage.test_statements import statements
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_load, old_save

pytestmark = pytest.mark.django_db(transaction=True)
CHUNKS = {"LEGACY": "memory_chunks"}


@pytest.fixture(autouse=True)
def _dual(settings: Any) -> Any:
    settings.CONVERSATIONS = CHUNKS
    with forced_phase(Phase.DUAL_WRITE):
        yield


def saved(name: str, *lines: str, user: Any = None) -> None:
    """Save once for each line."""
    for line in lines:
        append_messages(name, messages(line), user_id=user, create=True)


def keys(name: str = "c") -> list[int]:
    rows = MemoryMetadata.objects.filter(key="conversation_id", value=name)
    return sorted(rows.values_list("chunk_id", flat=True))


def by_old_code(name: str, *lines: str, user: Any = None, at: datetime | None = None) -> int:
    return old_save(connection, name, user, state(*lines).to_dict(), at)


def read_by_old_code(name: str = "c") -> list[str]:
    found = old_load(connection, name)
    assert found is not None
    return [each["content"] for each in found["conversation_history"]]


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("conversations", "prune", *arguments, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


# The command


def test_the_newest_blobs_stay_and_the_others_go_with_their_metadata() -> None:
    saved("c", "a", "b", "c", "d", "e")
    saved("other", "x", "y")
    before, read, size = keys(), read_by_old_code(), MemoryMetadata.objects.count()
    gone = MemoryChunk.objects.filter(pk__in=before[:-2])
    freed = sum(len(chunk.content or "") for chunk in gone)
    code, out, err = run("--overtaken-blobs", "--keep", "2")
    assert (code, out) == (
        0,
        f"       3  overtaken blobs pruned\n{freed:>8}  bytes of them\n",
    )
    assert "since old code reads it" in err
    assert (keys(), len(keys("other"))) == (before[-2:], 2)
    assert size - MemoryMetadata.objects.count() == 3 * 9
    assert not MemoryMetadata.objects.filter(chunk_id__in=before[:-2]).exists()
    assert read_by_old_code() == read == texts(load_state("c"))
    left = findings.findings().leftovers
    assert (left.overtaken, left.bare_metadata, left.unnamed) == (2, 0, 0)
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,), (Kind.EQUAL,)]
    assert run("--overtaken-blobs", "--keep", "2")[:2] == (0, "nothing to do\n")


@pytest.mark.parametrize("phase", Phase)
def test_pruning_changes_no_load_of_any_phase_or_of_old_code(phase: Phase) -> None:
    saved("c", "a", "b", "c")
    with forced_phase(phase):
        saved("c", "d", "e")
        shown = texts(load_state("c"))
        assert shown == ["a", "b", "c", "d", "e"]
        list(prune_overtaken(keep=1))
        assert texts(load_state("c")) == shown
        saved("c", "f")
        assert texts(load_state("c")) == [*shown, "f"]
    by_old_code("c", *read_by_old_code(), "theirs")
    with forced_phase(phase):
        assert sorted(texts(load_state("c"))) == [*shown, "f", "theirs"]
        list(sync("legacy"))
    assert sorted(read_by_old_code()) == [*shown, "f", "theirs"]


def test_a_dry_run_says_the_same_and_removes_nothing() -> None:
    saved("c", "a", "b", "c")
    before = keys()
    found = list(prune_overtaken(keep=1, dry_run=True))
    assert keys() == before
    _, out, _ = run("--overtaken-blobs", "--keep", "1", "--dry-run", "--json")
    counts = {"overtaken blobs pruned": 2, "bytes of them": found[0].bytes}
    assert json.loads(out) == {"counts": counts, "keep": 1, "dry_run": True}
    assert list(prune_overtaken(keep=1)) == found == [PrunedBlobs("c", 2, found[0].bytes)]
    assert keys() == before[-1:]


def test_overtaken_blobs_of_named_conversations_alone_are_pruned() -> None:
    for name in "ab":
        saved(name, "x", "y")
    assert [one.conversation_id for one in prune_overtaken(["b", "b", "no"], keep=1)] == ["b"]
    assert (len(keys("a")), len(keys("b"))) == (2, 1)
    assert run("a", "--overtaken-blobs", "--keep", "1")[0] == 0
    assert len(keys("a")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--overtaken-blobs"],
        ["--overtaken-blobs", "--keep", "0"],
        ["--overtaken-blobs", "--keep", "-1"],
        ["--keep", "3"],
        ["--max-seconds", "3"],
    ],
)
def test_without_a_number_that_keeps_the_newest_nothing_is_done(arguments: list[str]) -> None:
    saved("c", "a", "b")
    assert run(*arguments)[0] == 2
    assert len(keys()) == 2


def test_the_setting_says_how_many_stay_where_the_command_does_not(settings: Any) -> None:
    saved("c", "a", "b", "c")
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 2}
    assert run("--overtaken-blobs")[0] == 0
    assert len(keys()) == 2


def test_a_walk_that_has_no_more_time_goes_on_when_it_is_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time it makes a step at least, in batches of two."""
    monkeypatch.setattr(overtaken, "BATCH", 2)
    monkeypatch.setattr(overtaken, "BEHIND", 0)
    for name in "ab":
        saved(name, *"12345678")
    left = [len(keys("a")) + len(keys("b"))]
    codes = []
    while len(codes) < 20 and (not codes or codes[-1]):
        codes.append(run("--overtaken-blobs", "--keep", "2", "--max-seconds", "0")[0])
        left.append(len(keys("a")) + len(keys("b")))
    assert codes[:-1] == [4] * (len(codes) - 1)
    assert left[-1] == 4
    assert left == sorted(left, reverse=True)
    assert texts(load_state("a")) == texts(load_state("b")) == list("12345678")


def test_a_batch_is_as_large_however_many_blobs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overtaken, "BATCH", 3)
    monkeypatch.setattr(overtaken, "BEHIND", 1)
    saved("c", *map(str, range(12)))
    removed: list[int] = []
    remove = overtaken._removed

    def noted(keys: Any) -> list[int]:
        removed.append(len(keys))
        return remove(keys)

    monkeypatch.setattr(overtaken, "_removed", noted)
    (found,) = prune_overtaken(keep=2)
    assert (found.blobs, len(keys())) == (10, 2)
    assert max(removed) == 3


def test_one_that_fails_keeps_no_other_from_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        saved(name, "x", "y")
    batch = overtaken_blobs._prune_batch

    def failing(legacy: Any, name: str, *args: Any, **options: Any) -> Any:
        if name == "a":
            raise ValueError("secret")
        return batch(legacy, name, *args, **options)

    monkeypatch.setattr(overtaken_blobs, "_prune_batch", failing)
    code, out, _ = run("--overtaken-blobs", "--keep", "1", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, lines[0]) == (1, {"conversation_id": "a", "reason": "ValueError"})
    assert lines[1]["counts"]["failed"] == 1
    assert (len(keys("a")), len(keys("b"))) == (2, 1)


def test_a_table_of_ones_own_overtakes_nothing(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": OldSession.settings, "KEEP_BLOBS": 1}
    saved("c", "a", "b")
    assert run("--overtaken-blobs", "--keep", "1")[:2] == (0, "nothing to do\n")
    assert JSONFieldStore(OldSession.settings).prune("c", keep=1, needed=9).blobs == 0
    assert (estimate("tables").overtaken, texts(load_state("c"))) == (0, ["a", "b"])


def test_without_a_legacy_or_with_a_retired_one_there_is_nothing_to_prune(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    retired = replace(decide(), legacy=None)
    monkeypatch.setattr(overtaken_blobs, "decide", lambda: retired)
    with pytest.raises(SyncRefused, match="retired"):
        list(prune_overtaken(keep=1))
    settings.CONVERSATIONS = {}
    with pytest.raises(ConversationNotFound, match="LEGACY"):
        list(prune_overtaken(keep=1))
    assert run("--overtaken-blobs", "--keep", "1")[0] == 1


def test_an_estimate_counts_them() -> None:
    saved("c", "a", "b", "c")
    found = estimate("tables")
    size = sum(len(chunk.content or "") for chunk in MemoryChunk.objects.order_by("pk")[:2])
    assert (found.overtaken, found.overtaken_bytes) == (2, size)
    out = io.StringIO()
    call_command("conversations", "sync", "--to", "tables", "--estimate", stdout=out)
    assert "2  of legacy's blobs are overtaken" in out.getvalue()


# What stays


def test_blobs_of_old_code_stay_before_and_after_a_merge() -> None:
    first = by_old_code("c", "old")
    saved("c", "a", "b")
    taken_in = by_old_code("c", *read_by_old_code(), "theirs")
    saved("c", "c", "d")
    pending = by_old_code("c", *read_by_old_code(), "late")
    saved("d", "x")
    list(prune_overtaken(keep=1))
    assert {first, taken_in, pending} <= set(keys())
    assert list(findings.pending()) == ["c"]
    saved("c", "e", "f")
    list(prune_overtaken(keep=1))
    assert keys()[:-1] == [first, taken_in, pending]
    assert texts(load_state("c")) == ["old", "a", "b", "theirs", "c", "d", "late", "e", "f"]


def test_a_blob_that_a_sync_took_in_stays_below_the_floor_or_above() -> None:
    long_ago = timezone.now() - timedelta(days=2)
    theirs = [by_old_code("c", "a", at=long_ago), by_old_code("c", "a", "b", at=long_ago)]
    theirs.append(by_old_code("c", "a", "b", "c"))
    call_command("conversations", "sync", "--to", "tables", verbosity=0, stdout=io.StringIO())
    saved("c", "d", "e")
    list(prune_overtaken(keep=1))
    assert keys()[:-1] == theirs


def test_a_quarantined_blob_stays() -> None:
    mine, other = UserFactory(), UserFactory()
    saved("c", "a", "b", user=mine)
    aside = by_old_code("c", "z", user=other.pk)
    saved("c", "c", "d", user=mine)
    list(prune_overtaken(keep=1))
    assert keys() == [aside, keys()[-1]]
    # Also where it is what old code reads.
    newest = by_old_code("c", "z", user=other.pk, at=timezone.now() + timedelta(hours=1))
    assert texts(load_state("c", user_id=mine)) == ["a", "b", "c", "d"]
    list(prune_overtaken(keep=1))
    assert {aside, newest} < set(keys())
    assert texts(load_state("c", user_id=mine)) == ["a", "b", "c", "d"]


def test_our_write_to_legacy_alone_is_not_lost_behind_a_blob_of_old_code() -> None:
    """A merge begins with our own last write; old code read what was before it."""
    saved("c", "a")
    with forced_phase(Phase.LEGACY):
        saved("c", "ours")
    by_old_code("c", "a", "theirs")
    by_old_code("c", "a", "theirs", "later")
    list(prune_overtaken(keep=1))
    assert sorted(texts(load_state("c"))) == ["a", "later", "ours", "theirs"]


def test_blobs_of_a_conversation_unknown_to_the_tables_stay() -> None:
    with forced_phase(Phase.LEGACY):
        saved("c", "a", "b", "c")
    assert not ConversationState.rows.exists()
    assert list(prune_overtaken(["c"], keep=1)) == []
    assert list(prune_overtaken(["c"], keep=1, dry_run=True)) == []
    assert list(prune_overtaken([], keep=1)) == ChunkStore().crowded([], keep=1) == []
    assert len(keys()) == 3


def test_the_greatest_key_stays_where_it_is_not_the_newest() -> None:
    """An adopted SQLite table gives that of its last row again, perhaps below a floor."""
    saved("c", "a", "b", "c", "d")
    last = keys()[-1]
    MemoryChunk.objects.filter(pk=last).update(created_at=datetime(2020, 1, 1, tzinfo=UTC))
    # Not what the row names, either.
    MemoryMetadata.objects.filter(chunk_id=last, key=REVISION_MARK).update(value="1")
    list(prune_overtaken(keep=1))
    assert keys()[-1] == last


def test_a_blob_put_back_from_an_archive_stays() -> None:
    saved("c", "a", "b", "c")
    put_back = keys()[0]
    MemoryMetadata.objects.create(chunk_id=put_back, key=RESTORED_MARK, value="7")
    list(prune_overtaken(keep=1))
    assert keys() == [put_back, keys()[-1]]


def test_a_blob_that_two_conversations_name_stays() -> None:
    saved("c", "a", "b", "c")
    shared = keys()[0]
    MemoryMetadata.objects.create(chunk_id=shared, key="conversation_id", value="d")
    list(prune_overtaken(keep=1))
    assert keys() == [shared, keys()[-1]]


def test_the_conditions_under_which_a_blob_may_go() -> None:
    def blob(key: int, *, hour: int | None = 0, revision: int | None = 1, **more: Any) -> Placed:
        at = None if hour is None else datetime(2026, 1, 1, hour, tzinfo=UTC)
        return Placed(key, at, revision, **{"aside": False, **more})

    def gone(*blobs: Placed, keep: int = 1, held: int = 9, beside: Any = ()) -> list[int]:
        found = overtaken.overtaken(blobs, beside, keep=keep, needed=held)
        return [one.key for one in found]

    assert gone() == []
    assert gone(blob(1)) == []
    assert gone(blob(2), blob(1)) == [1]
    assert gone(blob(3), blob(2), blob(1), keep=2) == [1]
    # By time before key, and without a time before all others.
    assert gone(blob(3), blob(2, hour=2), blob(1)) == [1]
    assert gone(blob(3, hour=1), blob(2, hour=None), blob(1)) == [2, 1]
    # A foreign blob counts, and stays; a quarantined one does neither.
    assert gone(blob(3, revision=None), blob(2), blob(1, revision=None)) == [2]
    assert gone(blob(3, aside=True), blob(2), blob(1)) == [1]
    assert gone(blob(3), blob(2, aside=True), blob(1)) == [1]
    # What the row names, and what is later.
    assert gone(blob(3), blob(2, revision=9), blob(1, revision=8)) == [1]
    # Of those beside, nothing goes.
    assert gone(blob(1), beside=[blob(3), blob(2)], keep=2) == [1]
    assert gone(blob(1), beside=[blob(3), blob(2)], keep=3) == []


# A save that keeps so many


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
def test_a_save_leaves_so_many(settings: Any, phase: Phase) -> None:
    saved("c", "a", "b", "c", "d", "e")
    theirs = by_old_code("c", *read_by_old_code(), "theirs")
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 2}
    with forced_phase(phase):
        saved("c", "f", "g", "h")
        assert keys() == [theirs, *keys()[-2:]]
        assert texts(load_state("c")) == read_by_old_code()
    assert read_by_old_code() == ["a", "b", "c", "d", "e", "theirs", "f", "g", "h"]
    with forced_phase(Phase.LEGACY):
        saved("c", "i")
    assert len(keys()) == 3
    assert [one.kinds for one in verify()] == [(Kind.PENDING,)]


def test_a_sync_to_legacy_leaves_so_many(settings: Any) -> None:
    saved("c", "a", "b", "c")
    with forced_phase(Phase.NEW_ONLY):
        saved("c", "d")
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}
    list(sync("legacy"))
    assert (len(keys()), read_by_old_code()) == (1, ["a", "b", "c", "d"])


def test_a_save_catches_up_bit_by_bit(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overtaken, "BEHIND", 3)
    saved("c", *map(str, range(10)))
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 2}
    left = []
    for line in "abcde":
        saved("c", line)
        left.append(len(keys()))
    assert left == [8, 6, 4, 2, 2]


def test_without_the_setting_a_save_asks_nothing_more(settings: Any) -> None:
    def sent() -> list[str]:
        return statements(lambda: saved("c", "x"))

    saved("c", "a", "b", "c", "d")
    before = sent()
    assert not [sql for sql in before if sql.startswith("DELETE")]
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 3}
    saved("c", "y")
    after = sent()
    # What there is, and two DELETEs.
    assert len(after) == len(before) + 3


def test_a_save_outlives_a_blob_that_cannot_be_removed(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("c", "a", "b")
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}

    def broken(self: Any, conversation_id: str, **options: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    with monkeypatch.context() as patched:
        patched.setattr(ChunkStore, "prune", broken)
        assert append_messages("c", messages("c"))["stores"] == ["tables", "legacy"]
        with forced_phase(Phase.LEGACY):
            assert append_messages("c", messages("d"))["stores"] == ["legacy"]
    assert len(keys()) == 4
    assert texts(load_state("c")) == ["a", "b", "c", "d"]


def test_a_connection_that_is_lost_is_not_passed_over(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conversations.writing import trim

    saved("c", "a")
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}

    def broken(self: Any, conversation_id: str, **options: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    monkeypatch.setattr(ChunkStore, "prune", broken)
    monkeypatch.setattr(trim, "lost", lambda using: True)
    with pytest.raises(Exception, match="no_such_table"):
        trim.trim(ChunkStore(), "c", revision=1)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "3", True])
def test_a_number_that_keeps_nothing_is_refused(settings: Any, wrong: Any) -> None:
    from conversations.checks.settings import check_settings

    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": wrong}
    assert [found.id for found in check_settings()] == ["conversations.E007"]
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}
    assert check_settings() == []


# Others at work


def test_a_load_between_two_statements_shows_the_later_content(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the row; the blob that this names is overtaken and gone before it is read."""
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}
    saved("c", "a")
    for name, read in (("load", load), ("list", listed)):
        with forced_phase(Phase.LEGACY), monkeypatch.context() as patched:
            saved("c", f"before the {name}")
            seen = texts(load_state("c"))
            patched.setattr(ChunkStore, "last_ours_sql", lambda self: None)
            patched.setattr(
                ChunkStore, "last_ours", _late(ChunkStore.last_ours, f"late of the {name}")
            )
            assert read() == [*seen, f"late of the {name}"]


def load() -> list[str]:
    loaded = load_state("c")
    assert not loaded.load_info.stale
    return texts(loaded)


def listed() -> list[str]:
    return [entry.message["content"] for entry in list_messages("c", limit=50)]


def _late(held: Any, line: str) -> Any:
    """Let another save come between the row and what it says that legacy holds."""
    begun = False

    def read(self: ChunkStore, conversation_id: str, **options: Any) -> Any:
        nonlocal begun
        if not begun:
            begun = True
            saved(conversation_id, line)
        return held(self, conversation_id, **options)

    return read


def test_a_blob_that_vanished_by_itself_is_still_told_from_one_that_was_overtaken() -> None:
    saved("c", "a")
    with forced_phase(Phase.LEGACY):
        saved("c", "b")
        MemoryMetadata.objects.all().delete()
        MemoryChunk.objects.all().delete()
        assert listed() == ["a"]


def test_writers_old_code_and_a_pruner_lose_nothing_together(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"KEEP_BLOBS": 1}
    saved("c", "first")
    done, failed = threading.Event(), list[BaseException]()

    def working(act: Any) -> None:
        try:
            with forced_phase(Phase.DUAL_WRITE):
                act()
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    def write(name: str) -> None:
        for number in range(8):
            state = load_state("c")
            state.conversation_history.append(message(f"{name} {number}"))
            save_state("c", state)

    def old() -> None:
        for number in range(3):
            by_old_code("c", *read_by_old_code(), f"old {number}")

    def prune() -> None:
        while not done.is_set():
            assert not [one for one in prune_overtaken(keep=1) if one.reason]
            done.wait(0.01)

    with ThreadPoolExecutor(4) as threads:
        pruner = threads.submit(working, prune)
        work = [threads.submit(working, lambda n=n: write(n)) for n in ("x", "y")]
        work.append(threads.submit(working, old))
        for each in work:
            each.result()
        done.set()
        pruner.result()
    assert failed == []
    wanted = {f"{name} {number}" for name in "xy" for number in range(8)}
    shown = texts(load_state("c"))
    assert wanted | {f"old {n}" for n in range(3)} | {"first"} == set(shown)
    assert len(shown) == len(set(shown))
    list(sync("legacy"))
    assert sorted(read_by_old_code()) == sorted(shown)


def test_pruning_does_not_wait_for_a_locked_blob() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite locks no rows")
    saved("c", "a", "b", "c")
    locked = keys()[0]
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        MemoryChunk.objects.filter(pk=locked).update(embedding=[0.5])
        (found,) = threads.submit(elsewhere).result(timeout=30)
        assert (found.blobs, found.reason) == (1, "")
        assert threads.submit(elsewhere).result(timeout=30) == []
    assert keys() == [locked, keys()[-1]]
    list(prune_overtaken(keep=1))
    assert len(keys()) == 1


def elsewhere() -> list[PrunedBlobs]:
    try:
        return list(prune_overtaken(keep=1))
    finally:
        connections.close_all()


def test_marks_of_our_blobs_differ_from_those_of_merged_ones() -> None:
    theirs = by_old_code("c", "a")
    saved("c", "b")
    marked = MemoryMetadata.objects.filter(key=REVISION_MARK).values_list("chunk_id", flat=True)
    assert sorted(marked) == [theirs, keys()[-1]]
    assert [blob.revision for blob in overtaken._window("c", 2**62, 9, measured=True)] == [2, None]
