"""The archive: every state blob as a line of JSON, before it is removed.

A line is `{"chunk": {...}, "metadata": [{...}, ...]}`, by ascending chunk id. Each object maps the
columns that are not null to their values as text, which any column accepts back. Late writes of
deleted conversations are left out, since those were deleted for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conversations.exceptions import ArchiveRefused, InvalidState
from conversations.formats import lines_of, open_for_writing
from conversations.stores.chunks.archive_rows import Blob, Row, blobs, contents
from flags.texts import shown

# How many blobs pass between two lines of progress.
PROGRESS_EVERY = 5_000
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Archived:
    """A whole archive: how many of the existing blobs it holds, and up to which key."""

    path: str
    blobs: int
    last_key: int


def archive(path: Path, progress: Progress) -> Archived:
    """Write every blob to be removed, unless the file exists; then compare the file with them.

    The file is written whole or not at all, and is on the disk before this returns. An existing
    file is never overwritten: it may be the only copy of blobs that an earlier try removed.

    Raises: ArchiveRefused if it does not hold all existing blobs, OSError.
    """
    if not path.exists():
        with open_for_writing(path) as file:
            for number, (chunk, said) in enumerate(contents(_blobs_to_remove()), start=1):
                line = json.dumps({"chunk": chunk, "metadata": said}, separators=(",", ":"))
                file.write(line.encode("ascii") + b"\n")
                _tell(progress, "archived", number)
    return _read_back(path, progress)


def _read_back(path: Path, progress: Progress) -> Archived:
    """Read the archive back beside the table; both are in the order of keys."""
    count = last = 0
    records = lines_read(path)
    for chunk, _said in contents(_blobs_to_remove()):
        key = int(chunk["id"])
        held = next((kept for kept, _ in records if int(kept["id"]) >= key), None)
        if held != chunk:
            raise ArchiveRefused(
                f"{shown(str(path))} does not hold chunk {key} as it is: nothing was removed. It"
                " was written or changed since; name another file."
            )
        count, last = count + 1, key
        _tell(progress, "read back", count)
    # To the end: a file that is damaged behind the existing blobs is no archive either.
    for _ in records:
        pass
    return Archived(str(path), count, last)


def lines_read(path: Path) -> Iterator[tuple[Row, list[Row]]]:
    """Yield the blobs of an archive: the row of each, and its metadata rows.

    Raises: ArchiveRefused for a line that is no blob, OSError.
    """
    why = ""
    with path.open("rb") as file:
        try:
            for line in lines_of(file):
                yield _record(line.text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # Raised below: the error of a line holds its content.
            why = str(error) if isinstance(error, InvalidState) else "a line is no blob"
    if why:
        raise ArchiveRefused(f"{shown(str(path))} is no whole archive: {why}.")


def _record(text: str) -> tuple[Row, list[Row]]:
    record = json.loads(text)
    chunk, said = record["chunk"], record["metadata"]
    int(chunk["id"])
    if not all(isinstance(row["key"], str) for row in said):
        raise TypeError("key")
    return chunk, said


def _blobs_to_remove() -> Iterator[Blob]:
    return (blob for blob in blobs() if blob.named and not blob.buried)


def _tell(progress: Progress, what: str, number: int) -> None:
    if number % PROGRESS_EVERY == 0:
        progress(f"{what} {number} blobs")
