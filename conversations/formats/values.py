"""The JSON values of a file: JSON Lines, one document, or several, with one value in memory.

A file is values with white space between them, so all three forms are read alike. An array of
conversations is taken apart, and each of its elements is a value; any other array is one value.
Values are those of `json.loads`: 1.0, -0.0, NaN, the order of keys, lone surrogates.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from conversations import conf
from conversations.exceptions import InvalidState
from conversations.formats.files import ESCAPED_BYTES, GZIP
from conversations.formats.products import ZIP, ZIP_MAGIC, refusal

# How much is read at first; a longer value doubles it, so that no text is parsed often.
CHUNK = 2**16
_SPACE = re.compile(r"[ \t\r\n]*")
_SPACE_OF_LINE = re.compile(r"[ \t\r]*")
# The decoder's replacements of bytes that are no UTF-8; valid UTF-8 never gives them.
_NO_UTF8 = re.compile("[\udc80-\udcff]")
# The longest token except texts and numbers is -Infinity: an error this close to the end of the
# buffer may come from the end.
_NEAR = 12
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a file, and the line (from 1) in which it begins.

    `place` is its place in the array that holds it: "[3]". `size` counts the characters of its
    text. `problem` is the reason if it is no value.
    """

    line: int
    data: Any = None
    place: str = ""
    size: int = 0
    problem: str = ""


def values_of(stream: BinaryIO, *, apart: Callable[[Any], bool]) -> Iterator[Value]:
    """Yield the values of a binary stream, gzipped or not.

    An array is taken apart if `apart` is true for its first element. A line that is no JSON is
    yielded with its problem, and reading continues with the next line. If a value of several lines
    is broken, nothing behind it can be read.

    Raises: InvalidState naming the line: for a broken value of several lines, a value that is too
    long, a damaged or cut-off stream.
    """
    text = _Text(stream)
    while text.skip_space():
        line = text.line
        try:
            if text.buffer[text.at] == "[":
                yield from _array(text, line, apart)
            else:
                yield _single(text, line)
        except _Broken as broken:
            yield text.recover(line, broken)


class _Broken(Exception):
    """The text at this place of the buffer is no JSON."""

    def __init__(self, at: int, reason: str) -> None:
        self.at, self.reason = at, reason
        # Whether values were read from the broken text: then it was no line.
        self.begun = False
        super().__init__(reason)


class _Text:
    """The text of a stream from `at` on, which is in line `line`; read as far as needed."""

    def __init__(self, stream: BinaryIO) -> None:
        buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
        begin = buffered.peek(4)[:4]
        if begin in ZIP_MAGIC:
            raise InvalidState(refusal(ZIP))
        zipped = begin[:2] == GZIP
        self.source: Any = gzip.GzipFile(fileobj=buffered) if zipped else buffered
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.limit = conf.get("MAX_STATE_BYTES") * ESCAPED_BYTES
        self.buffer, self.at, self.line = "", 0, 1
        # Characters of the first line of the buffer that were read and dropped.
        self.dropped = 0
        self.began = self.ended = False

    def more(self) -> bool:
        """Read on; the places of the buffer change. Returns: False at the end."""
        if self.ended:
            return False
        try:
            raw = self.source.read(max(CHUNK, len(self.buffer) - self.at))
        except (EOFError, OSError, zlib.error) as error:
            raise InvalidState(f"cannot be read ({error})", path=f"line {self.line}") from error
        self._drop()
        self.buffer += self.decoder.decode(raw, final=not raw)
        if not self.began and self.buffer:
            self.buffer, self.began = self.buffer.removeprefix("\ufeff"), True
        if not raw:
            # White space at the end would be the place of anything missing before it.
            self.ended, self.buffer = True, self.buffer.rstrip(" \t\r\n")
        return True

    def _drop(self) -> None:
        """Forget the text that was read: a large value must not stay in memory twice."""
        newline = self.buffer.rfind("\n", 0, self.at)
        self.dropped = self.at - newline - 1 + (self.dropped if newline < 0 else 0)
        self.buffer, self.at = self.buffer[self.at :], 0

    def advance(self, end: int) -> None:
        """Continue at a place of the buffer."""
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def skip_space(self, space: re.Pattern[str] = _SPACE) -> bool:
        """Skip to the next character that is no white space. Returns: whether there is one."""
        while True:
            end = cast(Any, space.match(self.buffer, self.at)).end()
            if end < len(self.buffer):
                self.advance(end)
                return True
            if not self.more():
                # Stay behind the last text: there, something is missing.
                return False

    def take(self) -> tuple[Any, int]:
        """Read the value here, and skip it. Returns: the value, and the length of its text."""
        while True:
            broken: _Broken | None = None
            try:
                data, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                near = error.pos >= len(self.buffer) - _NEAR
                cut = near or error.msg.startswith("Unterminated string")
                if cut and self._grown():
                    continue
                broken = _Broken(error.pos, f"is no JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                name = type(error).__name__
                broken = _Broken(self.at, f"is no JSON that can be read ({name})")
            if broken is not None:
                # Not above: json's errors hold all the text that was read, and would become the
                # context.
                raise broken
            # More digits may follow a number.
            if end == len(self.buffer) and self.buffer[end - 1] not in '}]"' and self._grown():
                continue
            break
        size = end - self.at
        self.check_size(size, self.line)
        bad = None if self.buffer.isascii() else _NO_UTF8.search(self.buffer, self.at, end)
        if bad is not None:
            raise _Broken(bad.start(), "")
        self.advance(end)
        if self.at > 4 * CHUNK:
            self._drop()
        return data, size

    def _grown(self) -> bool:
        self.check_size(len(self.buffer) - self.at, self.line)
        return self.more()

    def check_size(self, size: int, line: int) -> None:
        """Raise InvalidState for a value that is too long."""
        if size > self.limit:
            raise InvalidState(f"is longer than {self.limit} characters", path=f"line {line}")

    def end_line(self) -> None:
        """Skip white space, to the end of the line. Raises: _Broken for anything else."""
        if self.skip_space(_SPACE_OF_LINE) and self.buffer[self.at] != "\n":
            raise _Broken(self.at, "is no JSON: Extra data")

    def recover(self, line: int, broken: _Broken) -> Value:
        """Skip a line that is no JSON. Returns: its problem.

        Raises: InvalidState if it was no line, but a value of several lines.
        """
        at = broken.at - self.at
        # From here on places stay the same, however much is read.
        self._drop()
        start = self.buffer.rfind("\n", 0, at) + 1
        column = at - start + (0 if start else self.dropped) + 1
        found = self.line + self.buffer.count("\n", 0, at)
        whole = found == line + 1 and not broken.begun and self._begins_value(start)
        if found > line and not whole:
            where = f"line {found}: column {column}"
            raise InvalidState(broken.reason or "is no UTF-8", path=where)
        if found > line:
            # The next line is whole by itself, so this one was cut off.
            self.advance(start)
            return Value(line, problem="is no JSON: the line is broken off")
        end, problem = self._end_of_line(0), f"column {column}: {broken.reason}"
        bad = _NO_UTF8.search(self.buffer, 0, end)
        if bad is not None:
            before = self.buffer[: bad.start()].encode("utf-8", "surrogateescape")
            problem = f"is no UTF-8 at byte {len(before) + self.dropped}"
        self.advance(end)
        return Value(line, problem=problem)

    def _end_of_line(self, start: int) -> int:
        """Return the place of the end of a line, after reading all of it."""
        while (end := self.buffer.find("\n", start)) < 0:
            self.check_size(len(self.buffer) - start, self.line)
            if not self.more():
                return len(self.buffer)
        return end

    def _begins_value(self, start: int) -> bool:
        """Whether an object or an array stands at the beginning of a line."""
        self._end_of_line(start)
        try:
            data, _ = _DECODER.raw_decode(self.buffer, start)
        except (ValueError, RecursionError):
            return False
        return isinstance(data, dict | list)


def _single(text: _Text, line: int) -> Value:
    data, size = text.take()
    text.end_line()
    return Value(line, data, size=size)


def _array(text: _Text, line: int, apart: Callable[[Any], bool]) -> Iterator[Value]:
    """Yield the elements of the array here, or the array itself."""
    elements: list[Any] = []
    total, taken_apart = 0, False
    try:
        for count, (began, data, size) in enumerate(_elements(text)):
            taken_apart = apart(data) if count == 0 else taken_apart
            if taken_apart:
                yield Value(began, data, f"[{count}]", size)
                continue
            elements.append(data)
            total += size
            text.check_size(total, line)
        text.end_line()
    except _Broken as broken:
        broken.begun = taken_apart
        raise
    if not taken_apart:
        yield Value(line, elements, size=total)


def _elements(text: _Text) -> Iterator[tuple[int, Any, int]]:
    """Yield the elements of the array here: line, value and length; skip its end."""
    text.advance(text.at + 1)
    closed = text.skip_space() and text.buffer[text.at] == "]"
    while not closed:
        if not text.skip_space():
            raise _Broken(text.at, "is no JSON: the array has no end")
        line = text.line
        data, size = text.take()
        yield line, data, size
        if not text.skip_space():
            raise _Broken(text.at, "is no JSON: the array has no end")
        closed = text.buffer[text.at] == "]"
        if not closed:
            if text.buffer[text.at] != ",":
                raise _Broken(text.at, "is no JSON: Expecting ',' delimiter")
            text.advance(text.at + 1)
    text.advance(text.at + 1)
