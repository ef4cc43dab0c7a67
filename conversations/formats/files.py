"""Files of lines: gzipped or not, one line in memory at a time."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from conversations import conf
from conversations.exceptions import InvalidState

_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# One character of a state takes up to six bytes as an ASCII escape.
_ESCAPED_BYTES = 6


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, by its number from 1; `problem` says why it has no text."""

    number: int
    text: str
    problem: str = ""


def lines_of(stream: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a binary stream, gzipped or not; empty ones are left out.

    Raises: InvalidState when the stream is broken off or damaged.
    """
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    source: Any = gzip.GzipFile(fileobj=buffered) if buffered.peek(2)[:2] == _GZIP else buffered
    limit = conf.get("MAX_STATE_BYTES") * _ESCAPED_BYTES
    number = 0
    while True:
        number += 1
        try:
            raw = source.readline(limit + 1)
        except (EOFError, OSError) as error:
            raise InvalidState(f"cannot be read ({error})", path=f"line {number}") from error
        if not raw:
            return
        if len(raw) > limit:
            raise InvalidState(f"is longer than {limit} bytes", path=f"line {number}")
        if number == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if raw.strip():
            yield _decoded(number, raw)


def _decoded(number: int, raw: bytes) -> Line:
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, "", f"is no UTF-8 at byte {error.start}")


def open_for_writing(path: Path) -> AbstractContextManager[BinaryIO]:
    """Open a file that is written whole or not at all; gzipped when its name ends in .gz.

    It is on the disk when it is closed. The same content gives the same bytes. It holds what
    users said: a new one is its owner's alone to read.
    """
    return _replacing(path)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb", opener=_for_its_owner) as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
                    yield cast(BinaryIO, zipped)
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _keep_name(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _keep_name(folder: Path) -> None:
    """Let the new name of a file survive a crash of the machine."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
