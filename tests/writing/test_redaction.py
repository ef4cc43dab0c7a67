"""A redacted text is nowhere any more, and a later write of it stores the redacted form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test import override_settings

from conversations.content.redaction import REDACTED, redacted_form, text_hash
from conversations.exceptions import (
    ConversationNotFound,
    InvalidState,
    MessageNotFound,
    StorageUnavailable,
)
from conversations.formats import export_lines, import_lines
from conversations.models import ConversationConflict, ConversationRedaction
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    delete_conversation,
    fork_conversation,
    list_messages,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    update_state_partial,
)
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import failing, touches_legacy, touches_tables
from tests.machine.oldcode import OldSession
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_load, old_save
from tests.writing.test_ingest import JSON_COLUMN

pytestmark = pytest.mark.django_db

SECRET = "my number is Krakatau-17"


def everywhere() -> list[str]:
    """Return every table and column, of every app, in which the secret can be read."""
    found = []
    tables = connection.introspection.table_names()
    # A model of the bench has its table in a database of its own.
    for model in (each for each in apps.get_models() if each._meta.db_table in tables):
        names = [field.attname for field in model._meta.concrete_fields]
        for row in model._base_manager.values(*names):
            for name, value in row.items():
                shown = bytes(value) if isinstance(value, memoryview) else value
                if "Krakatau" in str(shown) or b"Krakatau" in (
                    shown if isinstance(shown, bytes) else b""
                ):
                    found.append(f"{model._meta.db_table}.{name}")
    return found


def test_the_secret_can_be_found_before_it_is_redacted(phase: Phase) -> None:
    save_state("c", state(SECRET))
    assert everywhere()


def test_a_redacted_text_is_nowhere(phase: Phase) -> None:
    """In no version, no store, no fork and no record."""
    append_messages("c", messages("a", SECRET, "b"), keys=["1", "2", "3"], create=True)
    with forced_phase(Phase.NEW_PRIMARY):
        replace_message("c", "2", message("edited"))
        restore_message("c", "2")
        fork_conversation(fork_conversation("c"))
        old_save(connection, "c", None, state("x", SECRET).to_dict())
        load_state("c")
    redact_message("c", "2")
    old_text = [e for e in list_messages("c", limit=99) if "Krakatau" in str(e.message)]
    for entry in old_text:
        redact_message("c", entry.sequence)
    assert everywhere() == []


def test_position_key_and_role_stay(phase: Phase) -> None:
    append_messages(
        "c", [message("a"), message(SECRET, role="assistant")], keys=["1", "2"], create=True
    )
    redact_message("c", "2")
    assert [(e.sequence, e.key, e.message) for e in list_messages("c")] == [
        (1, "1", message("a")),
        (2, "2", {"role": "assistant", "content": REDACTED}),
    ]


def test_the_replacement_is_the_callers(phase: Phase) -> None:
    save_state("c", state(SECRET))
    redact_message("c", 1, replacement="(removed on request)")
    assert texts(load_state("c")) == ["(removed on request)"]


@override_settings(CONVERSATIONS={"LEGACY": "memory_chunks", "MAX_MESSAGE_BYTES": 1_000})
def test_a_replacement_is_as_long_as_a_message_may_be(phase: Phase) -> None:
    save_state("c", state(SECRET))
    with pytest.raises(InvalidState, match="replacement: 1001 bytes of JSON are more than"):
        redact_message("c", 1, replacement="x" * 999)
    assert texts(load_state("c")) == [SECRET]
    redact_message("c", 1, replacement="x" * 998)
    assert texts(load_state("c")) == ["x" * 998]


@pytest.mark.parametrize("later", Phase)
def test_a_later_write_of_the_message_stores_the_redacted_form(phase: Phase, later: Phase) -> None:
    save_state("c", state("a", SECRET))
    held = load_state("c")
    redact_message("c", 2)
    held.conversation_history.extend(messages("b"))
    with forced_phase(later):
        save_state("c", held)
        assert texts(load_state("c")) == ["a", REDACTED, "b"]
        append_messages("c", messages(SECRET))
        assert texts(load_state("c")) == ["a", REDACTED, "b", REDACTED]
        replace_message("c", 1, message(SECRET))
        assert texts(load_state("c")) == [REDACTED, REDACTED, "b", REDACTED]
    assert everywhere() == []


def test_an_earlier_text_of_a_message_that_moved_goes_with_it(phase: Phase) -> None:
    append_messages("c", messages("a", SECRET), keys=["1", "2"], create=True)
    replace_message("c", 2, message("fixed"))
    held = load_state("c")
    held.conversation_history.insert(1, message("between"))
    save_state("c", held)
    last = list_messages("c").last
    assert last is not None
    redact_message("c", last)
    assert texts(load_state("c")) == ["a", "between", REDACTED]
    assert everywhere() == []


@override_settings(CONVERSATIONS={"LEGACY": JSON_COLUMN})
@pytest.mark.parametrize(
    "secret",
    [
        {"role": "user", "content": [{"type": "text", "text": SECRET, "n": 1.0}]},
        {"role": "user", "content": "", "note": 1.0, "zz": SECRET, "a": 2},
    ],
)
def test_a_text_is_recognised_in_the_order_that_a_json_column_gives(
    phase: Phase, secret: dict[str, Any]
) -> None:
    append_messages("c", [message("a"), secret], create=True)
    redact_message("c", 2)
    assert [m["content"] for m in load_state("c").conversation_history] == ["a", REDACTED]
    assert everywhere() == []
    append_messages("c", [json.loads(json.dumps(secret, sort_keys=True))])
    assert everywhere() == []


def test_a_fork_knows_what_was_redacted_in_its_origin(phase: Phase) -> None:
    save_state("c", state("a", SECRET))
    redact_message("c", 2)
    fork = fork_conversation("c")
    append_messages(fork, messages(SECRET))
    assert texts(load_state(fork)) == ["a", REDACTED, REDACTED]


def test_an_imported_fork_and_its_forks_know_what_was_redacted_in_the_origin(
    new_only: None,
) -> None:
    save_state("c", state(SECRET))
    fork = fork_conversation("c")
    (line,) = export_lines([fork])
    redact_message("c", 1)
    # The fork of the fork comes first: its origin is not here yet.
    copies = [
        json.dumps(json.loads(line) | {"conversation_id": name, "forked_from": origin})
        for name, origin in (("last", "middle"), ("middle", "c"))
    ]
    list(import_lines(copies))
    for name in ("middle", "last"):
        append_messages(name, messages(SECRET))
        assert texts(load_state(name)) == [REDACTED, REDACTED]


def test_old_code_that_writes_while_a_redaction_runs_is_merged(
    new_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no lock: its blob comes between the statements."""
    with forced_phase(Phase.NEW_READS):
        save_state("c", state(SECRET, "b"))
    rewrite = ChunkStore.rewrite

    def interrupted(self: Any, *args: Any, **options: Any) -> str:
        token = rewrite(self, *args, **options)
        old_save(connection, "c", None, state(SECRET, "b", "old code's").to_dict())
        return token

    monkeypatch.setattr(ChunkStore, "rewrite", interrupted)
    redact_message("c", 1)
    monkeypatch.undo()
    found = load_state("c")
    assert (texts(found), found.load_info.stale) == ([REDACTED, "b", "old code's"], False)
    redact_message("c", 2)
    assert everywhere() == []


def test_redacting_a_short_text_leaves_others_as_they_are() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", AgentState(user_input="hello", conversation_history=messages("o")))
        with failing(touches_legacy):
            update_state_partial("c", {"user_input": "new"})
        blob = AgentState(user_input="the only copy", conversation_history=messages("o"))
        old_save(connection, "c", None, blob.to_dict())
        load_state("c")
        redact_message("c", 1)
    assert "the only copy" in ConversationConflict.objects.get().detail


@pytest.mark.parametrize(
    "content",
    [SECRET, [{"type": "text", "text": SECRET}, {"type": "image"}], ["seen", SECRET]],
    ids=["text", "parts", "texts"],
)
def test_a_record_that_repeats_the_text_loses_it(content: Any) -> None:
    said = message("a") | {"content": content}
    with forced_phase(Phase.NEW_READS):
        save_state("c", AgentState(conversation_history=[said]))
        with failing(touches_legacy):
            update_state_partial("c", {"user_input": "new"})
        blob = AgentState(user_input=SECRET, conversation_history=[said])
        old_save(connection, "c", None, blob.to_dict())
        load_state("c")
        assert SECRET in ConversationConflict.objects.get().detail
        redact_message("c", 1)
    assert SECRET not in ConversationConflict.objects.get().detail


def test_a_redaction_reaches_the_forks_of_a_fork_that_is_gone(phase: Phase) -> None:
    save_state("c", state(SECRET))
    middle = fork_conversation("c")
    last = fork_conversation(middle)
    delete_conversation(middle)
    redact_message("c", 1)
    assert texts(load_state(last)) == [REDACTED]
    assert everywhere() == []


def test_a_redacted_text_is_recognised_after_the_key_was_rotated(settings: Any) -> None:
    save_state("c", state(SECRET))
    redact_message("c", 1)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = b"another"
    append_messages("c", messages(SECRET))
    assert texts(load_state("c")) == [REDACTED, REDACTED]


@pytest.mark.parametrize("later", [p for p in Phase if p != Phase.LEGACY])
def test_old_code_that_writes_it_again_does_not_bring_it_back(phase: Phase, later: Phase) -> None:
    with forced_phase(Phase.NEW_PRIMARY):
        save_state("c", state("a", SECRET))
    read_before = old_load(connection, "c")
    assert read_before is not None
    redact_message("c", 2)
    read_before["conversation_history"] += messages("b")
    old_save(connection, "c", None, read_before)
    with forced_phase(later):
        assert texts(load_state("c")) == ["a", REDACTED, "b"]
        assert everywhere() == []
        append_messages("c", messages("c"))
        assert texts(load_state("c")) == ["a", REDACTED, "b", "c"]
    assert everywhere() == []


@override_settings(CONVERSATIONS={"LEGACY": OldSession.settings})
@pytest.mark.parametrize("later", [p for p in Phase if p != Phase.LEGACY])
def test_a_late_write_into_a_hosts_table_is_rewritten_and_merged_once(later: Phase) -> None:
    with forced_phase(Phase.NEW_PRIMARY):
        save_state("c", state("a", SECRET))
        read_before = OldSession().read("c")
        assert read_before is not None
        redact_message("c", 2)
    read_before["conversation_history"] += messages("b")
    OldSession().write("c", read_before)
    with forced_phase(later):
        assert texts(load_state("c")) == ["a", REDACTED, "b"]
        assert everywhere() == []
        revision = load_state("c").load_info.revision
        append_messages("c", messages("c"))
        found = load_state("c")
        assert (texts(found), found.load_info.revision) == (["a", REDACTED, "b", "c"], revision + 1)


def test_a_blob_that_is_set_aside_keeps_no_redacted_text() -> None:
    with forced_phase(Phase.NEW_PRIMARY):
        save_state("c", state("a", SECRET), UserFactory())
        redact_message("c", 2)
        old_save(connection, "c", UserFactory().pk, state("a", SECRET).to_dict())
        assert texts(load_state("c")) == ["a", REDACTED]
    assert everywhere() == []


def test_a_redacted_message_is_restored_redacted(phase: Phase) -> None:
    save_state("c", state("a", SECRET))
    remove_messages("c", [2])
    redact_message("c", 2)
    restore_message("c", 2)
    assert texts(load_state("c")) == ["a", REDACTED]
    assert everywhere() == []


def test_a_repeated_append_of_a_redacted_message_adds_nothing(phase: Phase) -> None:
    append_messages("c", messages(SECRET), keys=["k"], create=True)
    redact_message("c", "k")
    append_messages("c", messages(SECRET), keys=["k"])
    assert texts(load_state("c")) == [REDACTED]


def test_the_same_text_elsewhere_is_redacted_when_it_is_written_again_alone(phase: Phase) -> None:
    save_state("c", state("yes", "yes", "no"))
    save_state("d", state("yes"))
    redact_message("c", 1)
    assert texts(load_state("d")) == ["yes"]
    assert texts(load_state("c"))[2] == "no"
    assert texts(load_state("c"))[0] == REDACTED


def test_redacting_needs_every_store_and_changes_nothing_otherwise(phase: Phase) -> None:
    with forced_phase(Phase.NEW_PRIMARY):
        save_state("c", state(SECRET))
    for down in (touches_legacy, touches_tables):
        with failing(down), pytest.raises(StorageUnavailable):
            redact_message("c", 1)
        assert texts(load_state("c")) == [SECRET]
        assert not ConversationRedaction.objects.exists()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda user: redact_message("missing", 1), ConversationNotFound),
        (lambda user: redact_message("c", 1, user_id=user), ConversationNotFound),
        (lambda user: redact_message("c", 9), MessageNotFound),
        (lambda user: redact_message("c", "k"), MessageNotFound),
    ],
)
def test_a_missing_or_foreign_message_is_not_redacted(
    phase: Phase, call: Callable[[Any], Any], error: type[Exception]
) -> None:
    save_state("c", state("a"), UserFactory())
    with pytest.raises(error):
        call(UserFactory())
    assert texts(load_state("c")) == ["a"]


@pytest.mark.parametrize(
    ("spoken", "form"),
    [
        ("text", "R"),
        (5, "R"),
        ({"role": "user", "content": "x", "name": "Ann"}, {"role": "user", "content": "R"}),
        ({"content": "x"}, {"content": "R"}),
        (
            {"role": "tool", "tool_call_id": "1", "content": "x", "tool_name": "f"},
            {"role": "tool", "tool_call_id": "1", "content": "R"},
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x"}},
                    {"id": "2", "function": None},
                    "odd",
                ],
            },
            {
                "role": "assistant",
                "content": "R",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "2", "function": {"name": None, "arguments": "{}"}},
                ],
            },
        ),
    ],
)
def test_the_redacted_form_of_a_message_still_ties_tool_calls_together(
    spoken: Any, form: Any
) -> None:
    assert json.dumps(redacted_form(spoken, "R")) == json.dumps(form)


def test_a_text_is_recognised_by_role_and_content_with_a_key(settings: Any) -> None:
    hashed = text_hash({"role": "user", "content": "x"})
    assert text_hash({"content": "x", "role": "user", "extra": 1}) == hashed
    assert text_hash({"role": "tool", "content": "x"}) != hashed
    settings.SECRET_KEY = "another"
    assert text_hash({"role": "user", "content": "x"}) != hashed
