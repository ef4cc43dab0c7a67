"""One conversation that cannot be read keeps no other from anything, in either legacy store."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction

from conversations.exceptions import ArchiveRefused, StorageUnavailable, UnreadableState
from conversations.formats import NotExported, export_lines, exporting, import_lines
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout import retirement
from conversations.rollout.findings import findings
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.chunks import archive_rows
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.machine.oldcode import OldChunks, OldEntries, OldSession
from tests.support.blobs.models import TextSession
from tests.support.factories import messages, state, texts
from tests.support.retirement import CHUNKS, enter, written

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "nobody reads this on a terminal"
# No JSON, JSON that is no object, an object that is no state, and nothing.
BROKEN = ['{"' + SECRET, f'["{SECRET}"]', f'{{"history": "{SECRET}"}}', "[" * 20_000]
GOOD = ["good-1", "good-2", "good-3"]


@pytest.fixture(params=[OldChunks(), OldSession()], ids=["chunks", "jsonfield"])
def old(request: pytest.FixtureRequest, settings: Any) -> Any:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": request.param.settings}
    enter(Phase.LEGACY)
    return request.param


def broken(old: Any, text: str = BROKEN[0], name: str = "broken") -> None:
    """Spoil what legacy holds of a conversation."""
    if isinstance(old, OldSession):
        TextSession.objects.filter(session_key=name).update(payload=text)
        return
    named = MemoryMetadata.objects.filter(key="conversation_id", value=name)
    MemoryChunk.objects.filter(pk__in=named.values("chunk_id")).update(content=text)


def legacy(old: Any, text: str = BROKEN[0]) -> None:
    """Let legacy alone hold three good conversations, and one among them that is broken."""
    for name in [GOOD[0], "broken", *GOOD[1:]]:
        old.write(name, state(name).to_dict())
    broken(old, text)


def run(*args: str) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr of a sub-command; neither says what was said."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        call_command("conversations", *args, stdout=out, stderr=err)
    except CommandError as error:
        code = error.returncode
        err.write(str(error))
    assert SECRET not in out.getvalue() + err.getvalue()
    return code, out.getvalue(), err.getvalue()


def names(lines: str) -> list[str]:
    return sorted(json.loads(line)["conversation_id"] for line in lines.splitlines())


# Export


@pytest.mark.parametrize("text", BROKEN, ids=["text", "list", "field", "deep"])
def test_an_export_writes_the_rest_names_the_missing_one_and_fails(
    old: Any, text: str, tmp_path: Path
) -> None:
    legacy(old, text)
    path = tmp_path / "all.jsonl"
    code, out, err = run("export", str(path))
    assert (code, names(path.read_text())) == (1, GOOD)
    assert "broken: not exported (unreadable): legacy " in err
    assert out.split() == ["3", "exported", "1", "not", "exported"]


def test_an_export_says_so_among_its_data_in_json(old: Any, tmp_path: Path) -> None:
    legacy(old)
    code, out, _ = run("export", str(tmp_path / "all.jsonl.gz"), "--json")
    said, counts = map(json.loads, out.splitlines())
    assert code == 1
    assert said == {
        "conversation_id": "broken",
        "reason": mock.ANY,
        "reason_class": "unreadable",
    }
    assert counts == {"counts": {"exported": 3, "not exported": 1}}


def test_an_export_to_the_standard_output_is_lines_and_nothing_else(old: Any) -> None:
    legacy(old)
    code, out, err = run("export")
    assert (code, names(out)) == (1, GOOD)
    assert "broken: not exported (unreadable)" in err
    code, out, err = run("export", "--json")
    assert (code, names(out)) == (1, GOOD)
    assert json.loads(err.splitlines()[0])["conversation_id"] == "broken"


def test_a_conversation_left_out_of_an_export_is_imported_once_it_is_repaired(
    old: Any, tmp_path: Path
) -> None:
    legacy(old)
    path = tmp_path / "all.jsonl"
    run("export", str(path))
    broken(old, json.dumps(state("mended").to_dict()))
    whole = list(export_lines())
    assert len(whole) == 4
    assert set(path.read_text().splitlines()) < set(whole)


def test_a_named_conversation_that_is_broken_holds_up_no_other(old: Any, tmp_path: Path) -> None:
    legacy(old)
    path = tmp_path / "some.jsonl"
    code, _, err = run("export", str(path), "--id", "broken", "good-2")
    assert (code, names(path.read_text())) == (1, ["good-2"])
    assert "broken: not exported (unreadable)" in err


def test_an_export_of_nothing_but_failures_leaves_the_file_that_is_there(
    old: Any, tmp_path: Path
) -> None:
    legacy(old)
    path = tmp_path / "some.jsonl"
    path.write_text("of a better day")
    code, _, err = run("export", str(path), "--id", "broken")
    assert (code, path.read_text()) == (1, "of a better day")
    assert "nothing could be exported" in err


def test_rows_that_lie_a_store_that_is_silent_and_a_hosts_own_error_are_named_too(
    old: Any, caplog: Any
) -> None:
    legacy(old)
    with forced_phase(Phase.NEW_ONLY):
        save_state("lies", state("one", "two"))
        save_state("silent", state("x"))
        save_state("odd", state("x"))
    ConversationMessage.rows.filter(content="two").delete()
    whole = exporting.snapshot

    def spoiled(conversation_id: str) -> Any:
        if conversation_id == "silent":
            raise StorageUnavailable
        if conversation_id == "odd":
            raise ZeroDivisionError(SECRET)
        return whole(conversation_id)

    failures: list[NotExported] = []
    with mock.patch.object(exporting, "snapshot", spoiled):
        lines = list(export_lines(failed=failures.append))
    assert names("\n".join(lines)) == GOOD
    assert {one.conversation_id: one.reason_class for one in failures} == {
        "broken": "unreadable",
        "lies": "unanswered",
        "silent": "unanswered",
        "odd": "error",
    }
    assert [one.reason for one in failures if one.conversation_id == "odd"] == ["ZeroDivisionError"]
    assert SECRET not in caplog.text


def test_an_error_of_the_database_costs_an_export_in_a_transaction_one_conversation(
    old: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy(old)
    read = exporting.snapshot

    def refused(name: str) -> Any:
        if name == "broken":
            connection.cursor().execute("SELECT 1 FROM no_such_table")
        return read(name)

    monkeypatch.setattr(exporting, "snapshot", refused)
    failed: list[NotExported] = []
    with transaction.atomic():
        lines = list(export_lines(failed=failed.append))
    assert names("\n".join(lines)) == GOOD
    assert [one.conversation_id for one in failed] == ["broken"]


def test_without_a_listener_an_export_raises_as_before(old: Any) -> None:
    legacy(old)
    with pytest.raises(UnreadableState):
        list(export_lines())


# Every other walk


def test_a_sync_takes_the_rest_in_and_names_what_is_broken(old: Any) -> None:
    legacy(old)
    code, out, _ = run("sync", "--to", "tables")
    assert code == 1
    assert "broken: failed: legacy " in out
    assert {row.conversation_id for row in ConversationState.rows.all()} == set(GOOD)
    code, out, _ = run("sync", "--to", "tables", "--dry-run")
    assert code == 1
    assert "1  failed" in out
    code, out, _ = run("sync", "--to", "legacy")
    assert code == 0


def test_an_id_longer_than_any_of_ours_holds_up_no_other(settings: Any) -> None:
    """Old code has no limit; it is no store that does not answer, which is tried for a minute."""
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    for name in [*GOOD, "x" * 255, "y" * 256]:
        OldChunks().write(name, state(name).to_dict())
    for more in (["--dry-run"], []):
        code, out, _ = run("sync", "--to", "tables", *more)
        assert (code, out.count("4  taken in"), out.count("1  failed")) == (1, 1, 1)
    assert "yyy: failed: conversation_id: must have 1 to 255 characters" in out
    rows = ConversationState.rows.values_list("conversation_id", flat=True)
    assert set(rows) == {*GOOD, "x" * 255}


def test_a_blob_under_an_empty_id_is_no_conversations_and_stays_where_it_is(settings: Any) -> None:
    """No load and no list of ours gives it; nothing may bring it to where none ever will."""
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    for name in ["null", "", *GOOD, ""]:
        OldChunks().write(name, state(name).to_dict())
    MemoryMetadata.objects.filter(value="null").update(value=None)
    for more in (["--dry-run"], []):
        code, out, _ = run("sync", "--to", "tables", *more)
        assert (code, out.count("3  taken in")) == (0, 1)
    assert set(ConversationState.rows.values_list("conversation_id", flat=True)) == set(GOOD)
    code, out, _ = run("verify")
    assert (code, out.count("3  equal in both stores")) == (0, 1)
    assert names("\n".join(export_lines())) == GOOD
    left = findings().leftovers
    assert (left.unnamed, left.overtaken, retirement.holdings().unnamed) == (3, 0, 3)
    assert OldChunks().read("") == state("").to_dict()


def test_a_hosts_row_under_an_empty_id_is_named_and_holds_up_no_other(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
    enter(Phase.LEGACY)
    for name in ["", *GOOD]:
        OldSession().write(name, state(name).to_dict())
    for more in (["--dry-run"], []):
        code, out, _ = run("sync", "--to", "tables", *more)
        assert (code, out.count("3  taken in"), out.count("1  failed")) == (1, 1, 1)
    assert ": failed: conversation_id: must have 1 to 255 characters" in out
    assert set(ConversationState.rows.values_list("conversation_id", flat=True)) == set(GOOD)


@pytest.mark.parametrize(
    ("old", "name", "said"),
    [
        (OldEntries(), "", "''"),
        (OldChunks(), "y" * 300, f"'{'y' * 30}…{'y' * 20}'"),
    ],
    ids=["empty", "long"],
)
def test_an_exported_id_that_no_table_holds_is_named_by_the_import_and_holds_up_no_other(
    settings: Any, tmp_path: Path, old: Any, name: str, said: str
) -> None:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": old.settings}
    enter(Phase.LEGACY)
    for one in [name, *GOOD]:
        old.write(one, state(one).to_dict())
    path = tmp_path / "lines.jsonl"
    assert run("export", str(path))[0] == 0
    settings.CONVERSATIONS = {"REQUIRE_OWNER": False}
    enter(Phase.NEW_ONLY)
    code, out, _ = run("import", str(path))
    assert (code, out.count("3  created"), out.count("1  invalid")) == (1, 1, 1)
    assert f"conversation_id: {said} must have 1 to 255 characters" in out


def test_a_verification_looks_at_the_rest_and_names_what_is_broken(old: Any) -> None:
    for name in [*GOOD, "broken", "ours"]:
        old.write(name, state(name).to_dict())
    run("sync", "--to", "tables")
    # What legacy holds of it is known to be our own: `verify` reads it.
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("ours", messages("both"))
    broken(old, name="ours")
    broken(old)
    old.write("alone", state("x").to_dict())
    broken(old, name="alone")
    code, out, _ = run("verify")
    assert code == 3
    assert "3  equal in both stores" in out
    assert "alone: missing in the tables" in out
    if isinstance(old, OldChunks):
        assert "ours: unreadable (legacy)" in out
        assert "broken: unreadable (legacy)" in out
    else:
        # The row changed: that is for the next load or sync to look at.
        assert "2  pending" in out
    assert run("findings")[0] == 0


def test_a_value_that_no_driver_reads_holds_up_no_other_on_any_walk(
    old: Any, tmp_path: Path
) -> None:
    legacy(old)
    change, table, column = "content = CAST(x'7bff7d' AS text)", "memory_chunks", "content"
    if connection.vendor == "postgresql":
        change = "created_at = 'infinity'"
    if isinstance(old, OldSession):
        if connection.vendor == "postgresql":
            pytest.skip("the host's table has no column for such a value")
        change, table, column = "payload = CAST(x'7bff7d' AS text)", "blobs_textsession", "payload"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {change} WHERE {column} = %s", [BROKEN[0]])
    path = tmp_path / "all.jsonl"
    code, _, err = run("export", str(path))
    assert (code, names(path.read_text())) == (1, GOOD)
    assert "broken: not exported (unreadable): A store holds a value" in err
    assert run("sync", "--to", "tables", "--estimate")[0] == 0
    for more in (["--dry-run"], []):
        code, out, _ = run("sync", "--to", "tables", *more)
        assert (code, out.count("3  taken in"), out.count("1  failed")) == (1, 1, 1)
    assert "broken: failed: A store holds a value" in out
    assert {row.conversation_id for row in ConversationState.rows.all()} == set(GOOD)
    code, out, _ = run("verify")
    assert (code, "broken: missing in the tables" in out) == (3, True)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL holds no such bytes")
def test_a_verification_names_a_blob_of_ours_whose_bytes_are_no_text(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.DUAL_WRITE)
    for name in [*GOOD, "broken"]:
        save_state(name, state(name))
    with connection.cursor() as cursor:
        bad = "UPDATE memory_chunks SET content = CAST(x'7bff7d' AS text) WHERE content LIKE %s"
        cursor.execute(bad, ["%broken%"])
    code, out, _ = run("verify")
    assert (code, "3  equal in both stores" in out) == (3, True)
    assert "broken: unreadable (a value that cannot be read)" in out


def test_a_prune_and_the_findings_do_not_look_at_blobs(old: Any) -> None:
    legacy(old)
    run("sync", "--to", "tables")
    assert run("prune")[0] == 0
    code, out, _ = run("findings")
    assert code == 0
    assert "broken: not carried over: legacy " in out


def test_a_retirement_refuses_by_name_and_takes_nothing_away(old: Any, tmp_path: Path) -> None:
    legacy(old)
    run("sync", "--to", "tables")
    enter(Phase.NEW_ONLY)
    archive = [] if isinstance(old, OldSession) else ["--archive", str(tmp_path / "a.jsonl")]
    code, _, err = run("retire-legacy", "--yes", *archive)
    assert code == 5
    assert "1 conversations are not in order (missing in the tables): broken." in err
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(UnreadableState):
        load_state("broken")


# The archive: every blob exactly as it is, or none is removed


def chunks_with_a_broken_one(text: Any) -> int:
    """Let a blob that was overtaken long ago be broken. Returns: its key."""
    OldChunks().write("good-1", state("long ago").to_dict())
    key = MemoryChunk.objects.get().pk
    written(*GOOD)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE memory_chunks SET content = {text} WHERE id = %s", [key])
    return int(key)


def test_an_unreadable_blob_is_archived_and_put_back_exactly_as_it_is(
    settings: Any, tmp_path: Path
) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    key = chunks_with_a_broken_one("'{\"broken \\u0000 é'")
    before = MemoryChunk.objects.get(pk=key).content
    path = tmp_path / "archive.jsonl"
    assert set(dict(_removed(path)).values()) == {""}
    assert not MemoryChunk.objects.exists()
    assert {one.result for one in retirement.restore_archive(path)} == {"restored"}
    assert MemoryChunk.objects.filter(content=before).count() == 1
    assert [texts(load_state(name))[-1] for name in GOOD] == ["three", "two", "three"]


def _removed(path: Path) -> Iterator[tuple[str, str]]:
    for one in retirement.retire(archive=path):
        yield one.conversation_id, one.reason


@pytest.mark.parametrize("error", [ZeroDivisionError, OperationalError])
def test_one_whose_removal_fails_stays_and_holds_up_no_other(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    written(*GOOD)
    keys_of = retirement.remove.keys_of

    def failing_for_one(name: str) -> list[int]:
        if name == GOOD[0]:
            raise error(SECRET)
        return keys_of(name)

    with monkeypatch.context() as patched:
        patched.setattr(retirement.remove, "keys_of", failing_for_one)
        found = dict(_removed(tmp_path / "archive.jsonl"))
    stayed = set(MemoryMetadata.objects.filter(key="conversation_id").values_list("value"))
    assert found[GOOD[0]]
    assert (GOOD[0],) in stayed
    assert found[GOOD[1]] == ""
    assert (GOOD[1],) not in stayed
    assert SECRET not in str(found)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL holds no such bytes")
def test_bytes_that_are_no_text_are_named_and_nothing_is_removed(
    settings: Any, tmp_path: Path
) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    key = chunks_with_a_broken_one("CAST(x'7bff7d' AS text)")
    count = MemoryChunk.objects.count()
    path = tmp_path / "archive.jsonl"
    with pytest.raises(UnreadableState, match=f"legacy chunks {key} hold bytes that are no text"):
        dict(_removed(path))
    assert MemoryChunk.objects.count() == count
    assert not path.exists()


def test_a_database_that_fails_is_not_taken_for_bytes_that_are_no_text(
    settings: Any, tmp_path: Path
) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    written(*GOOD)
    with (
        mock.patch.object(archive_rows, "_rows", mock.Mock(side_effect=OperationalError("gone"))),
        pytest.raises(OperationalError, match="gone"),
    ):
        dict(_removed(tmp_path / "archive.jsonl"))
    assert MemoryChunk.objects.exists()


def test_one_blob_of_an_archive_that_cannot_be_put_back_holds_up_no_other(
    settings: Any, tmp_path: Path
) -> None:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    chunks_with_a_broken_one("'{'")
    path = tmp_path / "archive.jsonl"
    dict(_removed(path))
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"metadata": [{"key": "conversation_id"}]})
    foreign = json.loads(lines[2])
    foreign["chunk"]["user_id"] = "424242"
    path.write_text("\n".join([*lines[:2], json.dumps(foreign), *lines[3:]]))
    found = [str(one.result) for one in retirement.restore_archive(path)]
    assert found.count("failed") >= 1
    assert found.count("restored") == len(lines) - found.count("failed")
    with pytest.raises(ArchiveRefused):
        path.write_text("{")
        list(retirement.restore_archive(path))


def test_an_import_refuses_an_unreadable_conversation_and_takes_the_rest(old: Any) -> None:
    legacy(old)
    lines = list(export_lines(failed=lambda _: None))
    line = lines[0].replace('"good-1"', '"broken"')
    found = [str(one.result) for one in import_lines([line, *lines], replace=True)]
    assert found == ["refused", "unchanged", "unchanged", "unchanged"]
