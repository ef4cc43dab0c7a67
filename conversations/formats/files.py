"""Files of lines: gzipped or not, one line in memory at a time."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from conversations import conf
from conversations.exceptions import InvalidState

GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# One character of a state needs up to six bytes as an ASCII escape.
ESCAPED_BYTES = 6


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, by its number from 1; `problem` is the reason if it has no text."""

    number: int
    text: str
    problem: str = ""


def lines_of(stream: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a binary stream, gzipped or not; empty ones are left out.

    Raises: InvalidState if the stream is cut off or damaged.
    """
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    source: Any = gzip.GzipFile(fileobj=buffered) if buffered.peek(2)[:2] == GZIP else buffered
    limit = conf.get("MAX_STATE_BYTES") * ESCAPED_BYTES
    number = 0
    while True:
        number += 1
        try:
            raw = source.readline(limit + 1)
        except (EOFError, OSError, zlib.error) as error:
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
    """Open a file that is written whole or not at all; gzipped if its name ends in .gz.

    Its content is on the disk when it is closed, and the same content gives the same bytes. Only
    its owner can read it, also when it replaces another file, since it holds users' texts. A link
    under this name is replaced, and never followed.
    """
    return _replacing(path)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    # A new file with a random name, for its owner alone: an existing file is never written to.
    descriptor, name = tempfile.mkstemp(prefix=".unfinished-", dir=path.parent)
    unfinished = Path(name)
    try:
        with open(descriptor, "wb") as file:
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


def _keep_name(folder: Path) -> None:
    """Make the new name of a file survive a crash of the machine."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
