"""Records from lines, whatever format each line has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from conversations.exceptions import InvalidState
from conversations.formats.chats import chat_record
from conversations.formats.files import Line
from conversations.formats.records import Record, parsed, record_of


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no conversation: `reason` names the place."""

    number: int
    reason: str


def read_records(lines: Iterable[Line]) -> Iterator[tuple[int, Record] | BadLine]:
    """Yield a record, with its line number, or what is wrong with the line.

    A record has been checked as `save_state` checks a state; nothing of a bad line is kept.
    """
    for line in lines:
        try:
            yield line.number, _record(line)
        except InvalidState as error:
            yield BadLine(line.number, str(error))


def _record(line: Line) -> Record:
    if line.problem:
        raise InvalidState(line.problem)
    data = parsed(line.text)
    ours = isinstance(data, dict) and "format" in data
    return replace(record_of(data) if ours else chat_record(data), size=len(line.text))
