"""`conversations import`: whose a conversation becomes, when it was, and what a file is."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.utils import timezone

from conversations import storage
from conversations.formats import Owners, export_lines, import_records, read_records
from conversations.models import ConversationState, ConversationTombstone
from conversations.rollout.verification import verify
from conversations.routing.owners import ANY_OWNER
from conversations.state import AgentState
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import messages, state

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = ("refused", "it belongs to another owner here, or to none")
NO_USER = 'it names no "user", and REQUIRE_OWNER is set'


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", email="ada@example.org")


@pytest.fixture
def bob() -> User:
    return User.objects.create_user("bob")


def file(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def run(*args: Any) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        call_command("conversations", "import", *map(str, args), stdout=out, stderr=err)
    except CommandError as error:
        code = error.returncode
        err.write(str(error))
    return code, out.getvalue(), err.getvalue()


def imported(*lines: Any, **options: Any) -> list[tuple[str, str]]:
    raw = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines).encode()
    found = import_records(read_records(io.BytesIO(raw)), **options)
    return [(str(one.result), one.reason) for one in found]


def chat(name: str, user: Any = ..., *texts: str, **more: Any) -> dict[str, Any]:
    who = {} if user is ... else {"user": user}
    return {"id": name, **who, "messages": messages(*(texts or ("hello",))), **more}


def owners() -> dict[str, Any]:
    return dict(ConversationState.objects.values_list("conversation_id", "user__username"))


def emptied() -> None:
    ConversationState.rows.all().delete()
    ConversationTombstone.rows.all().delete()


@pytest.fixture(params=[{}, {"LEGACY": "memory_chunks"}], ids=["fresh", "migrating"])
def _either(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.CONVERSATIONS = request.param


# Owners


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("together", [1, 100])
@pytest.mark.parametrize("dry_run", [True, False])
def test_an_unknown_name_is_refused_and_makes_no_ownerless_conversation(
    ada: User, together: int, dry_run: bool
) -> None:
    names = ["ada", "ada@example.org", "Ada", "some\nbody"]
    lines = [chat(f"c{number}", name) for number, name in enumerate(names)]
    assert imported(*lines, together=together, dry_run=dry_run) == [
        ("created", ""),
        ("refused", 'user: no user here is named "ada@example.org"'),
        ("refused", 'user: no user here is named "Ada"'),
        ("refused", 'user: no user here is named "some\\nbody"'),
    ]
    assert owners() == ({} if dry_run else {"c0": "ada"})


@pytest.mark.parametrize("together", [1, 100])
def test_a_chat_without_a_user_is_refused_where_one_is_required(
    settings: Any, together: int
) -> None:
    lines = [chat("a"), chat("b", None), messages("bare")]
    settings.CONVERSATIONS = {}
    assert imported(*lines, together=together) == [("refused", NO_USER)] * 3
    assert not ConversationState.objects.exists()
    settings.CONVERSATIONS = {"REQUIRE_OWNER": False}
    assert imported(*lines, together=together) == [("created", "")] * 3


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("together", [1, 100])
def test_an_operator_maps_assigns_or_leaves_what_has_no_owner_here(
    ada: User, bob: User, together: int
) -> None:
    lines = [chat("mapped", "x"), chat("other", "y"), chat("named", "bob"), chat("silent")]
    said = Owners({"x": str(bob.pk)}, assigned=str(ada.pk))
    assert imported(*lines, owners=said, together=together) == [("created", "")] * 4
    assert owners() == {"mapped": "bob", "other": "ada", "named": "bob", "silent": "ada"}
    emptied()
    said = Owners({"x": None, "bob": str(ada.pk)}, ownerless=True)
    assert imported(*lines, owners=said, together=together) == [("created", "")] * 4
    assert owners() == {"mapped": None, "other": None, "named": "ada", "silent": None}


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("together", [1, 100])
def test_our_own_format_is_mapped_and_assigned_too(ada: User, bob: User, together: int) -> None:
    with forced_phase(Phase.NEW_ONLY):
        storage.save_state("a", state("x"), ada)
    line = json.loads(next(iter(export_lines())))
    emptied()
    lines = [
        line | {"conversation_id": name, "user": user}
        for name, user in (
            ("known", str(ada.pk)),
            ("gone", "987"),
            ("never", "no key"),
            ("no", None),
        )
    ]
    only_legacys = line | {"conversation_id": "legacy", "user": None, "legacy_user": "987"}
    assert imported(*lines, only_legacys, together=together) == [
        ("created", ""),
        ("refused", "user: there is no such user here"),
        ("refused", "user: can be no user's primary key here"),
        ("created", ""),
        ("created", ""),
    ]
    # What it says of itself to be nobody's is; what only legacy knew keeps its owner.
    rows = ConversationState.rows.values_list("conversation_id", "user_id", "legacy_user_id")
    assert set(rows) == {("known", ada.pk, None), ("no", None, None), ("legacy", None, "987")}
    said = Owners({"987": str(bob.pk)}, assigned=str(ada.pk))
    assert imported(*lines[1:3], owners=said, together=together) == [("created", "")] * 2
    assert owners() | {"gone": "bob", "never": "ada"} == owners()
    # A key of another database may be another user's here.
    emptied()
    said = Owners({"987": str(bob.pk), str(ada.pk): str(bob.pk)})
    assert imported(lines[0], only_legacys, owners=said, together=together) == [("created", "")] * 2
    assert owners() == {"known": "bob", "legacy": "bob"}


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("together", [1, 100])
def test_a_number_names_no_user_until_it_is_mapped(ada: User, bob: User, together: int) -> None:
    User.objects.create_user("7000001")
    lines = [chat("a", 7000001), chat("b", ada.pk), chat("c", 7000001)]
    assert imported(*lines, together=together) == [
        ("refused", "user: 7000001 is a number, and no user's name"),
        ("refused", f"user: {ada.pk} is a number, and no user's name"),
        ("refused", "user: 7000001 is a number, and no user's name"),
    ]
    said = Owners({"7000001": str(bob.pk)}, assigned=str(ada.pk))
    assert imported(*lines, owners=said, together=together) == [("created", "")] * 3
    assert owners() == {"a": "bob", "b": "ada", "c": "bob"}


def test_a_name_of_two_users_is_refused(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    User.objects.create_user("eve", first_name="ada")
    ada.first_name = "ada"
    ada.save()
    # As with a user model whose names are not unique.
    monkeypatch.setattr(User, "USERNAME_FIELD", "first_name")
    for together in (1, 100):
        assert (
            imported(chat("a", "ada"), chat("b", "ada"), together=together)
            == [("refused", 'user: more than one user here is named "ada"')] * 2
        )


@pytest.mark.usefixtures("_either")
def test_the_command_asks_for_owners_and_takes_them(tmp_path: Path, ada: User, bob: User) -> None:
    path = file(tmp_path / "a.jsonl", chat("a", "x"), chat("b", "y"))
    for more in ([], ["--dry-run"]):
        code, out, err = run(path, *more)
        assert code == 1
        assert 'line 1 (a): refused: user: no user here is named "x"' in out
        assert "--user-map FILE" in err
        assert not ConversationState.objects.exists()
    users = tmp_path / "users.json"
    users.write_text(json.dumps({"x": "ada", "y": f"pk:{bob.pk}"}))
    assert run(path, "--user-map", users)[0] == 0
    assert owners() == {"a": "ada", "b": "bob"}
    emptied()
    assert run(path, "--assign", "ada")[0] == 0
    assert owners() == {"a": "ada", "b": "ada"}
    emptied()
    code, _, err = run(path, "--ownerless")
    assert (code, owners()) == (0, {"a": None, "b": None})
    assert "2 of the created conversations have no owner" in err
    emptied()
    code, out, err = run(path, "--ownerless", "--json")
    assert json.loads(out) == {"counts": {"created": 2}}
    assert "2 of the created conversations have no owner" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object of users"),
        ('{"x": 7}', "is no JSON object of users"),
        ('{"x": "nobody", "y": "pk:424242"}', 'no user here is named "nobody". there is no user'),
        ('{"x": "pk:no"}', "is no user's primary key"),
        (r'{"x": "\ud800"}', r'no user here is named "\ud800"'),
        (r'{"x": "\u0000"}', r'no user here is named "\x00"'),
    ],
)
def test_a_map_of_unknown_users_is_refused_before_any_write(
    tmp_path: Path, ada: User, content: str, said: str
) -> None:
    path = file(tmp_path / "a.jsonl", chat("a", "ada"))
    users = tmp_path / "users.json"
    users.write_text(content)
    code, _, err = run(path, "--user-map", users)
    assert code == 2
    assert said in err
    code, _, err = run(path, "--assign", "nobody")
    assert code == 2
    assert 'no user here is named "nobody"' in err
    assert run(path, "--user-map", tmp_path / "nowhere")[0] == 1
    assert not ConversationState.objects.exists()


# Replacing


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("user", [..., None, "bob", "nobody here"])
@pytest.mark.parametrize("ownerless", [True, False])
def test_a_conversation_of_another_owner_is_never_replaced(
    ada: User, bob: User, user: Any, ownerless: bool
) -> None:
    said = Owners(ownerless=ownerless)
    imported(chat("a", "ada"))
    before = list(export_lines())
    other = chat("a", user, "other content")
    for dry_run in (True, False):
        ((result, _),) = imported(other, replace=True, owners=said, dry_run=dry_run)
        assert result == "refused"
        assert list(export_lines()) == before
    # Its own owner's file may, and so may an operator who says so; its owner stays.
    assert imported(chat("a", "ada", "mine"), replace=True) == [("replaced", "")]
    assigned = Owners(assigned=str(ada.pk), mapping={"bob": str(ada.pk)})
    assert imported(other, replace=True, owners=assigned) == [("replaced", "")]
    imported(chat("a", "ada", "mine"), replace=True)
    any_owner = Owners(ownerless=True)
    assert imported(other, replace=True, any_owner=True, owners=any_owner) == [("replaced", "")]
    assert owners() == {"a": "ada"}


def test_the_command_replaces_another_owners_where_it_is_told_to(
    tmp_path: Path, ada: User, bob: User
) -> None:
    imported(chat("a", "ada"))
    path = file(tmp_path / "a.jsonl", chat("a", "bob", "other"))
    assert run(path, "--replace")[0] == 1
    assert run(path, "--replace-any-owner")[0] == 0
    assert owners() == {"a": "ada"}
    assert len(storage.load_state("a", user_id=ada).conversation_history) == 1


# Times

BEGAN = datetime(2023, 11, 3, 8, 26, 40, 250_000, tzinfo=UTC)
ENDED = BEGAN + timedelta(minutes=90)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize(
    "times",
    [
        {"created_at": BEGAN.isoformat(), "updated_at": ENDED.isoformat()},
        {"create_time": BEGAN.timestamp(), "update_time": ENDED.timestamp()},
        {"createdAt": int(BEGAN.timestamp() * 1000), "updatedAt": int(ENDED.timestamp() * 1000)},
    ],
    ids=["iso", "seconds", "milliseconds"],
)
def test_an_old_chat_is_old_in_every_phase(phase: Phase, times: Any, ada: User) -> None:
    with forced_phase(phase):
        storage.save_state("now", state("x"), ada)
        imported(chat("old", "ada", **times), chat("older", "ada", created_at="2020-01-01"))
        row = ConversationState.objects.get(conversation_id="old")
        assert (row.created_at, row.updated_at) == (BEGAN, ENDED)
        assert storage.get_conversation_id(ada) == "now"
        page = storage.list_conversations(ada)
        assert [one.conversation_id for one in page] == ["now", "old", "older"]
        assert storage.get_conversation_timestamp(ada, "old") == ENDED
        assert not storage.should_resume_conversation(ENDED)
        # The chat says so in its state as well, and a first turn makes it new.
        assert storage.load_state("old", user_id=ada).extra.keys() == times.keys()
        storage.append_messages("old", messages("again"), user_id=ada)
        assert storage.get_conversation_id(ada) == "old"


def test_a_chat_without_times_has_those_of_its_messages() -> None:
    said = [{"role": "user", "created_at": moment} for moment in (None, ENDED.timestamp(), "soon")]
    said.append({"role": "user", "timestamp": BEGAN.isoformat()})
    imported(
        {"id": "a", "messages": said}, {"id": "b", "messages": said, "created_at": "2020-01-01"}
    )
    found = ConversationState.objects.order_by("pk").values_list("created_at", "updated_at")
    assert list(found) == [(BEGAN, ENDED), (datetime(2020, 1, 1, tzinfo=UTC), ENDED)]


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({"updated_at": ENDED.isoformat()}, (ENDED, ENDED)),
        ({"timestamp": BEGAN.timestamp()}, (BEGAN, BEGAN)),
        ({"created_at": ENDED.isoformat(), "updated_at": BEGAN.isoformat()}, (ENDED, ENDED)),
        ({"created_at": "yesterday", "updated_at": True}, None),
        ({"created_at": "9999-12-31T23:59:59-05:00", "updated_at": 1e300}, None),
        ({}, None),
    ],
)
def test_half_a_time_counts_and_an_impossible_one_does_not(times: Any, wanted: Any) -> None:
    before = timezone.now()
    assert imported(chat("a", **times)) == [("created", "")]
    row = ConversationState.objects.get()
    if wanted is None:
        assert before <= row.created_at <= row.updated_at <= timezone.now()
    else:
        assert (row.created_at, row.updated_at) == wanted


def test_a_replacement_has_the_times_of_the_file() -> None:
    imported(chat("a"))
    changed = chat("a", ..., "other", created_at=BEGAN.isoformat(), updated_at=ENDED.isoformat())
    assert imported(changed, replace=True) == [("replaced", "")]
    row = ConversationState.objects.get()
    assert (row.created_at, row.updated_at) == (BEGAN, ENDED)


# Messages

HISTORIES: list[Any] = [
    [{"type": "function_call", "call_id": "c", "arguments": '{"a" : 1}'}, {"output": "7"}],
    [{"parts": [{"content": "x", "part_kind": "user-prompt"}], "kind": "request"}],
    [{"type": "human", "data": {"content": "x"}}],
    ["text", 1, 1.0, None, [], {"role": 7}],
]


@pytest.mark.parametrize("history", HISTORIES)
def test_a_list_under_messages_is_taken_as_it_is(history: list[Any], tmp_path: Path) -> None:
    line = {"id": "a", "messages": history}
    for layout in (json.dumps(line), json.dumps([line]), json.dumps(line, indent=2)):
        emptied()
        assert run(file(tmp_path / "a.json", layout))[0] == 0
        found = storage.load_state("a", user_id=ANY_OWNER).conversation_history
        assert json.dumps(found) == json.dumps(history)


def test_a_bare_list_is_one_chat_and_an_empty_one_is_none(tmp_path: Path) -> None:
    for history in HISTORIES[:3]:
        assert imported(history[:1])[0][0] == "created"
    for nothing in ("[]", "[\n]"):
        code, out, _ = run(file(tmp_path / "a.json", nothing))
        assert code == 1
        assert "line 1: is an empty list, and no conversation" in out
    assert ConversationState.objects.count() == 3
    assert imported([]) == [("invalid", "line 1: is an empty list, and no conversation")]


def test_every_chat_of_an_array_and_of_a_user_is_imported(tmp_path: Path, ada: User) -> None:
    chats = [chat(f"c{number}") for number in range(3)]
    path = file(tmp_path / "a.json", "[", ",\n".join(map(json.dumps, chats)), "]")
    assert run(path)[:2] == (0, "       3  created\n")
    of_ada = {"user": "ada", "conversations": [chat("d"), messages("e"), chat("f", "bob"), 1]}
    assert imported(of_ada) == [
        ("created", ""),
        ("created", ""),
        ("refused", 'user: no user here is named "bob"'),
        (
            "invalid",
            "line 1: conversations[3]: is neither a line of an export, nor a list of"
            ' messages, nor an object with "messages"',
        ),
    ]
    assert ConversationState.objects.filter(user=ada).count() == 2
    _, out, _ = run(file(tmp_path / "b.json", [chat("g"), chat("h", "bob")]))
    assert "line 1, [1] (h): refused: user: no user here" in out


def test_our_own_lines_come_as_one_document_too(tmp_path: Path) -> None:
    storage.save_state(
        "a", AgentState(conversation_history=[1.0, -0.0, 10**30, float("nan"), "\ud800"])
    )
    storage.append_messages("a", messages("x"), keys=["k"])
    lines = list(export_lines())
    for indent in (None, 2):
        emptied()
        path = file(
            tmp_path / "a.json", json.dumps([json.loads(line) for line in lines], indent=indent)
        )
        assert run(path)[0] == 0
        assert list(export_lines()) == lines
        assert all(not found.mismatched for found in verify())


# Other products


def tree(role: str) -> dict[str, Any]:
    return {"n": {"id": "n", "message": {"author": {"role": role}}, "parent": None, "children": []}}


PRODUCTS: dict[str, tuple[str, Any]] = {
    "chatgpt": ("ChatGPT", {"title": "t", "mapping": tree("user"), "current_node": "n"}),
    "chatgpt without a node": ("ChatGPT", {"mapping": tree("user")}),
    "claude": ("Claude.ai", {"uuid": "u", "name": "n", "chat_messages": []}),
    "open webui": (
        "Open WebUI",
        {"id": "i", "chat": {"history": {"messages": {}}, "messages": []}},
    ),
    "librechat tree": ("LibreChat", {"conversationId": "c", "messagesTree": []}),
    "librechat": ("LibreChat", {"messages": [{"text": "x", "isCreatedByUser": True}]}),
    "sharegpt": ("ShareGPT", {"conversations": [{"from": "human", "value": "x"}]}),
    "sharegpt messages": ("ShareGPT", {"messages": [{"from": "human", "value": "x"}]}),
    "sharegpt message": ("ShareGPT", {"from": "human", "value": "x"}),
    "sharegpt with roles": ("ShareGPT", {"conversations": [{"role": "user", "content": "x"}]}),
    "claude code": ("Claude Code", {"sessionId": "s", "parentUuid": None, "type": "user"}),
    "claude code summary": ("Claude Code", {"type": "summary", "summary": "x", "leafUuid": "u"}),
    "codex": ("Codex", {"timestamp": "t", "type": "session_meta", "payload": {}}),
    "codex item": ("Codex", {"type": "response_item", "payload": {"role": "user"}}),
    "vercel": ("UIMessage", {"messages": [{"role": "user", "parts": [{"type": "text"}]}]}),
    "vercel message": ("UIMessage", {"role": "user", "parts": [{"type": "text", "text": "x"}]}),
    "preferences": ("DPO", {"input": {"messages": []}, "preferred_output": []}),
}


@pytest.mark.parametrize(("name", "value"), PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("layout", ["lines", "array", "indented", "behind others"])
def test_an_export_of_another_product_is_named_once_and_nothing_is_written(
    name: str, value: Any, layout: str, tmp_path: Path
) -> None:
    lines = [json.dumps(value)] * 30
    text = {
        "lines": "\n".join(lines),
        "array": json.dumps([value] * 30),
        "indented": json.dumps([value] * 30, indent=2),
        # As a session begins with lines of its own.
        "behind others": "\n".join(
            ['{"type": "file-history-snapshot"}', *[json.dumps(value)] * 30]
        ),
    }[layout]
    path = file(tmp_path / "export.json", text)
    for more in ([], ["--json"], ["--dry-run"]):
        code, out, err = run(path, *more)
        assert code == 1
        assert err.count("which is not imported yet") == 1
        assert name in err
        if "--json" in more:
            assert name in json.loads(out)["error"]
        else:
            assert out == ""
    assert not ConversationState.objects.exists()


def test_a_zip_archive_and_a_folder_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("conversations.json", "[]")
    code, _, err = run(tmp_path / "export.zip")
    assert (code, "a ZIP archive, as ChatGPT and Claude.ai export them" in err) == (1, True)
    code, _, err = run(tmp_path)
    assert (code, "is a folder: name a file of it" in err) == (1, True)
    for name in ("conversations-000.json", "conversations.json"):
        (tmp_path / name).write_text("[]")
        code, _, err = run(tmp_path)
        assert "the folder of a ChatGPT or Claude.ai export" in err
        (tmp_path / name).unlink()


def test_a_chat_that_resembles_another_product_is_imported() -> None:
    resembling: list[Any] = [
        chat("a", mapping={"x": 1}, chat_messages="none", chat={"x": 1}, input={"messages": []}),
        {"id": "b", "messages": [{"role": "user", "parts": [{"text": "no type"}]}]},
        {"id": "c", "messages": [{"role": "user", "from": "Ada", "content": "x"}]},
        {"id": "d", "sessionId": "s", "type": "response_item", "messages": messages("x")},
        {"user": "ada", "conversations": [{"id": "e", "role": "admin", "messages": []}]},
    ]
    User.objects.create_user("ada")
    assert imported(*resembling) == [("created", "")] * 5
    # In our own format a state may hold anything.
    line = json.loads(next(iter(export_lines())))
    line["state"]["conversation_history"] = [{"role": "user", "parts": [{"type": "text"}]}]
    assert imported(line | {"conversation_id": "f", "messages": [[1, None]]}) == [("created", "")]


def test_another_product_far_behind_is_an_error_of_its_lines(tmp_path: Path) -> None:
    lines = [chat(f"c{number}") for number in range(25)]
    found = imported(*lines, {"chat_messages": []}, chat("last"))
    assert [result for result, _ in found] == ["created"] * 25 + ["invalid", "created"]
    assert found[25][1] == "line 26: is a Claude.ai export, which is not imported yet"


# Errors


def test_errors_are_capped_and_counted(tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", *["no JSON"] * 30, chat("good"))
    code, out, _ = run(path)
    assert code == 1
    assert out.splitlines()[19:21] == [
        "line 20: invalid: line 20: column 1: is no JSON: Expecting value",
        "and 10 more",
    ]
    assert "30  invalid" in out
    assert ConversationState.objects.count() == 1
    code, out, _ = run(path, "--json")
    said = [json.loads(line) for line in out.splitlines()]
    assert len(said) == 22
    assert said[20:] == [{"more": 10}, {"counts": {"invalid": 30, "unchanged": 1}}]
    assert said[0]["reason_class"] == "invalid"
    assert len(run(path, "--errors", "0")[1].splitlines()) == 32
    assert len(run(path, "--errors", "3")[1].splitlines()) == 6
    assert run(path, "--errors", "-1")[:2] == (2, "")


def test_a_document_that_is_no_json_is_one_error(tmp_path: Path) -> None:
    text = json.dumps(chat("a", ..., *"abcdefgh"), indent=2).replace('"messages"', "messages")
    code, out, err = run(file(tmp_path / "a.json", text))
    assert (code, out) == (1, "")
    assert "line 3: column 3: is no JSON" in err


# Dry runs


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("seed", range(12))
def test_a_dry_run_says_what_the_run_says_and_writes_nothing(
    seed: int, ada: User, bob: User
) -> None:
    random = Random(seed)
    with forced_phase(Phase.NEW_ONLY):
        for name, user in (("a", ada), ("b", bob), ("gone", ada)):
            storage.save_state(name, state("hello"), user)
        fork = storage.fork_conversation("a", user_id=ada)
        own = [json.loads(line) for line in export_lines(["a", "b", fork])]
        storage.delete_conversation("gone", ada)
        storage.delete_conversation(fork, ada)
    kept = own[:2] + [line | {"conversation_id": f"{line['conversation_id']}2"} for line in own]
    kept += [own[2] | {"conversation_id": "fork", "forked_from": origin} for origin in ("c", "z")]
    chats = [
        chat(name, user, text)
        for name in ("a", "c", "d", "gone")
        for user in ("ada", "bob", "nobody", None)
        for text in ("hello", "other")
    ]
    lines = random.choices([*kept, *chats, "no JSON", [], {"a": 1}], k=40)
    said = Owners(ownerless=bool(seed % 2), mapping={"nobody": str(ada.pk)} if seed % 3 else {})
    options: dict[str, Any] = {
        "owners": said,
        "replace": bool(seed % 4),
        "any_owner": seed % 5 == 4,
    }
    before = list(export_lines())
    for together in (1, 100):
        dry = imported(*lines, dry_run=True, together=together, **options)
        assert list(export_lines()) == before
    assert imported(*lines, together=100, **options) == dry
    assert {"created", "refused", "unchanged", "invalid"} & {result for result, _ in dry}
