"""Chats of other products become states; a bad one is named by line and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conversations.exceptions import InvalidState
from conversations.formats import Conversation, read_conversations
from conversations.state import AgentState
from tests.support.exports import MESSAGES, written

pytestmark = pytest.mark.django_db

NO_CHAT = 'is neither a line of an export, nor a list of messages, nor an object with "messages"'


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_of_our_data_sets_becomes_a_state(tmp_path: Path, zipped: bool) -> None:
    line = {
        "id": "one",
        "user": "mia",
        "source": "somewhere",
        "license": "MIT",
        "messages": MESSAGES,
        "context": [{"content": "likes tea", "source": "tool"}],
        "metadata": {"domain": "coffee", "task": 3},
    }
    # Told by its first bytes, and not by its name.
    path = written(tmp_path / "data.bin", "", line, zipped=zipped)
    assert list(read_conversations(path)) == [
        Conversation(
            conversation_id="one",
            user="mia",
            state=AgentState(
                memory_context=[{"content": "likes tea", "source": "tool"}],
                conversation_history=MESSAGES,
                extra={
                    "source": "somewhere",
                    "license": "MIT",
                    "metadata": {"domain": "coffee", "task": 3},
                },
            ),
            source="somewhere",
            license="MIT",
        )
    ]
    (found,) = read_conversations(str(path))
    assert json.dumps(found.state.conversation_history) == json.dumps(MESSAGES)


def test_chat_messages_are_named_by_their_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl.gz", MESSAGES, "", {"messages": [], "tools": []})
    assert list(read_conversations(path)) == [
        Conversation("chats-1", None, AgentState(conversation_history=MESSAGES)),
        Conversation("chats-3", None, AgentState(extra={"tools": []})),
    ]


def test_the_conversations_of_one_user_are_read_one_by_one(tmp_path: Path) -> None:
    line = {
        "id": "all of mia",
        "user": "mia",
        "license": "MIT",
        "conversations": [{"id": "a", "messages": MESSAGES}, {"messages": [], "user": "bo"}],
        "questions": [{"question": "?"}],
    }
    path = written(tmp_path / "history.jsonl", line)
    extra = {"license": "MIT"}
    assert list(read_conversations(path)) == [
        Conversation(
            "a", "mia", AgentState(conversation_history=MESSAGES, extra=extra), license="MIT"
        ),
        Conversation("history-1-2", "bo", AgentState(extra=extra), license="MIT"),
    ]


def test_the_shared_data_is_read_whole(shared_data: Path) -> None:
    found = {
        name: [
            (conversation.conversation_id, len(conversation.state.conversation_history))
            for conversation in read_conversations(shared_data / name)
        ]
        for name in ("conversations.jsonl.gz", "retrieval_bfcl_memory.jsonl.gz")
    }
    counts = {
        name: (len({conversation_id for conversation_id, _ in rows}), sum(n for _, n in rows))
        for name, rows in found.items()
    }
    assert counts == {
        "conversations.jsonl.gz": (574, 10958),
        "retrieval_bfcl_memory.jsonl.gz": (37, 323),
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: column 2: is no JSON: Expecting property name enclosed in double quotes"),
        (
            '"x"',
            f"line 2: {NO_CHAT}",
        ),
        (
            {"prompt": ""},
            f"line 2: {NO_CHAT}",
        ),
        ({"messages": {}}, "line 2: messages: is a dict, not a list"),
        (["text"], "line 2: messages[0]: is a str, not an object"),
        (
            [{"role": 1}, {"name": "x"}],
            "line 2: [1]: is no message: it has none of content, kind, parts, role, type. Any list"
            ' is taken as it is under "messages"',
        ),
        ([], "line 2: is an empty list, and no conversation"),
        ({"conversations": []}, "line 2: conversations: is empty: there is no conversation in it"),
        ({"messages": [], "context": {}}, "line 2: context: is a dict, not a list"),
        ({"messages": [], "id": 5}, "line 2: id: is a int, not a string"),
        ({"messages": [], "user": 5.0}, "line 2: user: is a float, not a string"),
        ({"messages": [], "user": True}, "line 2: user: is a bool, not a string"),
        (
            {"messages": [], "history": []},
            "line 2: history: is a field of the state, and none of a chat",
        ),
        ({"conversations": 1}, "line 2: conversations: is a int, not a list"),
        (
            {"conversations": [[1]]},
            "line 2: conversations[0].messages[0]: is a int, not an object",
        ),
        (
            {"conversations": [MESSAGES, 1]},
            f"line 2: conversations[1]: {NO_CHAT}",
        ),
    ],
)
def test_a_bad_line_is_named_by_line_and_place(tmp_path: Path, line: Any, reason: str) -> None:
    reader = read_conversations(written(tmp_path / "chats", MESSAGES, line))
    assert next(reader).conversation_id == "chats-1"
    with pytest.raises(InvalidState) as raised:
        list(reader)
    assert str(raised.value) == reason
