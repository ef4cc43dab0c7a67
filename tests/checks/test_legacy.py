"""The checks of `CONVERSATIONS["LEGACY"]`: each fires on its mistake and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test.utils import isolate_apps

from conversations.checks import legacy
from conversations.storage import conversation_exists, delete_conversation, load_state
from conversations.stores.jsonfield import checks as mapping_checks
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.blobs.models import TextSession
from tests.support.checks import MAPPING, convert, found
from tests.support.hostshapes.shapes import SHAPES


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
    function = f"{convert.__module__}.convert"
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
