"""Files of lines: a damaged one is an error, and an export replaces no other file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.test import override_settings

from conversations.exceptions import InvalidState
from conversations.formats import open_for_writing, read_conversations
from tests.support.exports import MESSAGES, written

pytestmark = pytest.mark.django_db


def test_a_byte_that_is_no_utf_8_is_named_by_line_and_place(tmp_path: Path) -> None:
    path = tmp_path / "chats"
    path.write_bytes(b'\xef\xbb\xbf[{"role": 1}]\n[\xff]\n')
    with pytest.raises(InvalidState, match=r"^line 2: is no UTF-8 at byte 1$"):
        list(read_conversations(path))


def test_a_file_that_is_broken_off_is_no_shorter_file(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.gz", *[MESSAGES] * 50, zipped=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidState, match="cannot be read"):
        list(read_conversations(path))


@override_settings(CONVERSATIONS={"MAX_STATE_BYTES": 100})
def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "chats", [{"role": "user", "content": "x" * 10_000}])
    with pytest.raises(InvalidState, match=r"^line 1: is longer than 600 characters$"):
        list(read_conversations(path))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_conversations(tmp_path / "none"))


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_an_export_is_readable_for_the_owner_of_the_file_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch(mode=0o644)
    before = os.umask(0o022)
    try:
        with open_for_writing(path) as file:
            file.write(b"{}\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [name]


def test_a_link_in_the_place_of_an_export_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not ours")
    for name in ("all.jsonl", "all.jsonl.unfinished"):
        (tmp_path / name).symlink_to(elsewhere)
    with open_for_writing(tmp_path / "all.jsonl") as file:
        file.write(b"{}\n")
    assert elsewhere.read_bytes() == b"not ours"
    assert not (tmp_path / "all.jsonl").is_symlink()
    assert (tmp_path / "all.jsonl").read_bytes() == b"{}\n"
