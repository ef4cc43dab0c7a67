"""Records from the values of a file, in any of the known formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from conversations.exceptions import InvalidState
from conversations.formats.chats import chat_record, chats_in, is_conversation
from conversations.formats.products import folder_refusal, product_of, refusal
from conversations.formats.records import Record, record_of, within
from conversations.formats.values import Value, values_of

# How much is read ahead before the first result: a file's beginning shows its product.
AHEAD, AHEAD_SIZE = 20, 2**20


@dataclass(frozen=True, slots=True)
class Read:
    """A conversation of a file, the line in which it begins, and its place there, if any."""

    line: int
    record: Record
    place: str = ""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A value that is no conversation, by line and place: `reason` names the place within it."""

    line: int
    reason: str
    place: str = ""


def read_records(stream: BinaryIO) -> Iterator[Read | BadLine]:
    """Yield the conversations of a file, or the problem of each.

    A record has been checked as `save_state` checks a state; no part of a bad line is kept.

    Raises: InvalidState for a file of another product, named in the message, before the first
    result. Also for a file that is cut off, and for a document that is no JSON.
    """
    for value in values(stream):
        yield from _records(value)


def values(stream: BinaryIO) -> Iterator[Value]:
    """Yield the values of a file, after a check that it is not one of another product.

    Raises: InvalidState, see `read_records`.
    """
    found = values_of(stream, apart=is_conversation)
    ahead: list[Value] = []
    size = 0
    for value in found:
        product = product_of(value.data)
        if product is not None:
            raise InvalidState(refusal(product))
        ahead.append(value)
        size += value.size
        if len(ahead) >= AHEAD or size >= AHEAD_SIZE:
            break
    # Taken values are forgotten, to save memory.
    yield from chain((ahead.pop(0) for _ in range(len(ahead))), found)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file. Raises: OSError, InvalidState for a folder."""
    if path.is_dir():
        raise InvalidState(folder_refusal(path))
    with path.open("rb") as file:
        yield file


def chats_of(value: Value) -> Iterator[tuple[str, Any]]:
    """Yield the chats of a value, and their places.

    Raises: InvalidState naming the place.
    """
    if value.problem:
        raise InvalidState(value.problem)
    product = product_of(value.data)
    if product is not None:
        raise InvalidState(f"is {product}, which is not imported yet")
    yield from chats_in(value.data)


def _records(value: Value) -> Iterator[Read | BadLine]:
    data = value.data
    try:
        if isinstance(data, dict) and "format" in data:
            yield Read(value.line, replace(record_of(data), size=value.size), value.place)
            return
        for place, chat in chats_of(value):
            yield _record(value, place, chat)
    except InvalidState as error:
        yield BadLine(value.line, str(error), value.place)


def _record(value: Value, place: str, chat: Any) -> Read | BadLine:
    whole = ".".join(filter(None, (value.place, place)))
    try:
        return Read(value.line, replace(chat_record(chat), size=value.size), whole)
    except InvalidState as error:
        reason = str(within(error, place, ".")) if place else str(error)
        return BadLine(value.line, reason, value.place)
