"""One conversation as one line of JSON, and back. Pure: no database, no clock.

    {"format": 1, "conversation_id": "…", "user": "7", "forked_from": null,
     "created_at": "2026-01-31T12:00:00+00:00", "updated_at": "2026-01-31T12:30:00+00:00",
     "state": {…}, "messages": [[1, null], [4, "key"]]}

`state` is the result of `AgentState.to_dict()`. `messages` holds the sequence and the key of each
message of its `conversation_history`. `user` is a primary key as text, or null; if only legacy
knows the owner, the line has a `legacy_user` behind it. The times are null if only legacy holds a
conversation, without a time. Rare parts stand in a line only if they are needed:

- the third element of a message, {"first_digest": "…", "timestamp": "…"}. The digest is that of
  the key's first content, if the message was edited since. The timestamp is the time of adding, if
  that is not `updated_at` and the message states none;
- `next_sequence`, at the end, if the sequences behind the last one are taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from conversations.content.codec import BIGINT, SHORT, storable
from conversations.content.digests import DIGEST_BYTES
from conversations.content.document import BASELINE_KEY, Document
from conversations.content.moments import parse_timestamp
from conversations.content.validation import check_document
from conversations.exceptions import InvalidState
from flags.texts import quoted

FORMAT = 1
_EXTRAS = ("first_digest", "timestamp")
_REQUIRED = (
    "format",
    "conversation_id",
    "user",
    "forked_from",
    "created_at",
    "updated_at",
    "state",
    "messages",
)
_TO_FIT = f"must have 1 to {SHORT} characters, without NUL and lone surrogates"
_NAMES = (*_REQUIRED, "legacy_user", "next_sequence")


@dataclass(frozen=True, slots=True)
class Place:
    """A message's data in a conversation, beside its content."""

    sequence: int
    key: str | None = None
    first_digest: bytes | None = None
    timestamp: datetime | None = None

    def to_json(self) -> list[Any]:
        """Return the sequence, the key and, if there is more, the rest."""
        extras: dict[str, Any] = {}
        if self.first_digest is not None:
            extras["first_digest"] = self.first_digest.hex()
        if self.timestamp is not None:
            extras["timestamp"] = _text_of(self.timestamp)
        return [self.sequence, self.key, *([extras] if extras else [])]


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation outside of any store.

    `owner` is the primary key of a user as text, `legacy_user` that of an owner that only legacy
    knows. `username` is another format's name of its user; `is_number` says that it is a number
    instead: a key of an unknown database. `places` is None in formats without any. `size` is the
    length of the line that the record was read from, if any.
    """

    conversation_id: str
    document: Document
    owner: str | None = None
    legacy_user: str | None = None
    username: str | None = None
    is_number: bool = False
    forked_from: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    places: tuple[Place, ...] | None = None
    next_sequence: int = 1
    size: int = field(default=0, compare=False)

    def to_line(self) -> str:
        """Return the line: ASCII, without its end; the same record gives the same bytes."""
        places = self.places or ()
        owner = {"user": self.owner}
        if self.legacy_user is not None:
            owner["legacy_user"] = self.legacy_user
        taken = {}
        if self.next_sequence != following(places):
            taken["next_sequence"] = self.next_sequence
        data = {
            "format": FORMAT,
            "conversation_id": self.conversation_id,
            **owner,
            "forked_from": self.forked_from,
            "created_at": _text_of(self.created_at),
            "updated_at": _text_of(self.updated_at),
            "state": self.document.to_dict(),
            "messages": [place.to_json() for place in places],
            **taken,
        }
        return json.dumps(data)


def record_of(data: Any) -> Record:
    """Return the conversation of a parsed line, after checking all of it.

    Raises: InvalidState naming the place, without any content.
    """
    if not isinstance(data, dict):
        raise InvalidState(f"is a {type(data).__name__}, not an object")
    _check_names(data)
    document = _document(data["state"])
    places = _places(data["messages"], count=len(document.messages))
    record = Record(
        conversation_id=check_id(data["conversation_id"], path="conversation_id"),
        document=document,
        owner=_optional_text(data, "user"),
        legacy_user=_optional_text(data, "legacy_user"),
        forked_from=_optional_text(data, "forked_from"),
        created_at=_moment(data["created_at"], path="created_at"),
        updated_at=_moment(data["updated_at"], path="updated_at"),
        places=places,
        next_sequence=_next_sequence(data, places),
    )
    if record.owner is not None and record.legacy_user is not None:
        raise InvalidState("stands beside a user: a line has one owner", path="legacy_user")
    if record.forked_from == record.conversation_id:
        raise InvalidState("is the conversation itself", path="forked_from")
    if (record.created_at is None) != (record.updated_at is None):
        raise InvalidState("is null, but the other time is not", path="created_at, updated_at")
    return record


def following(places: Sequence[Place]) -> int:
    """Return the sequence behind the last place."""
    return places[-1].sequence + 1 if places else 1


def parsed(text: str) -> Any:
    """Return the JSON value of a line. Raises: InvalidState naming the column."""
    # Raised after the handlers: json's errors hold the whole line, and would become the context.
    try:
        # Without its end: that would be the place of anything missing before it.
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        problem = InvalidState(f"is no JSON: {error.msg}", path=f"column {error.colno}")
    except (ValueError, RecursionError) as error:
        problem = InvalidState(f"is no JSON that can be read ({type(error).__name__})")
    raise problem


def within(error: InvalidState, place: str, separator: str) -> InvalidState:
    """Return the error with the outer part of its place added."""
    if not error.path:
        return InvalidState(str(error), path=place)
    reason = str(error).removeprefix(f"{error.path}: ")
    return InvalidState(reason, path=f"{place}{separator}{error.path}")


def _fits(value: str) -> bool:
    return 0 < len(value) <= SHORT and storable(value)


def check_text(value: Any, *, path: str) -> str:
    """Return an id or a key. Raises: InvalidState if its column cannot hold it."""
    if not isinstance(value, str):
        raise InvalidState(f"is a {type(value).__name__}, not a string", path=path)
    if not _fits(value):
        raise InvalidState(_TO_FIT, path=path)
    return value


def check_id(value: Any, *, path: str) -> str:
    """Return a conversation's id. Raises: InvalidState quoting it, for legacy has any."""
    if isinstance(value, str) and not _fits(value):
        raise InvalidState(f"{quoted(value)} {_TO_FIT}", path=path)
    return check_text(value, path=path)


def _optional_text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return None if value is None else check_text(value, path=name)


def _check_names(data: Mapping[str, Any]) -> None:
    for name in _REQUIRED:
        if name not in data:
            raise InvalidState("is missing", path=name)
    # True and 1.0 equal 1, but are not the format's number.
    if type(data["format"]) is not int or data["format"] != FORMAT:
        raise InvalidState(f"is not {FORMAT}, the one format this version reads", path="format")
    unknown = sum(name not in _NAMES for name in data)
    if unknown:
        raise InvalidState(f"has {unknown} fields beside {', '.join(_NAMES)}")


def _document(state: Any) -> Document:
    if not isinstance(state, dict):
        raise InvalidState(f"is a {type(state).__name__}, not an object", path="state")
    if BASELINE_KEY in state:
        raise InvalidState("belongs to one load, not to a file", path=f"state.{BASELINE_KEY}")
    try:
        return check_document(state).document
    except InvalidState as error:
        if error.path == "state":
            raise
        raise within(error, "state", ".") from error


def _places(value: Any, *, count: int) -> tuple[Place, ...]:
    if not isinstance(value, list):
        raise InvalidState(f"is a {type(value).__name__}, not a list", path="messages")
    if len(value) != count:
        raise InvalidState(f"has {len(value)} places for {count} messages", path="messages")
    places: list[Place] = []
    keys: set[str] = set()
    for index, data in enumerate(value):
        path = f"messages[{index}]"
        place = _place(data, path=path)
        # One below the column's limit: the conversation still needs a next sequence.
        if not following(places) <= place.sequence < BIGINT - 1:
            raise InvalidState("must be a whole number above the one before", path=f"{path}[0]")
        if place.key in keys:
            raise InvalidState("is the key of two messages", path=f"{path}[1]")
        keys |= {place.key} if place.key is not None else set()
        places.append(place)
    return tuple(places)


def _place(data: Any, *, path: str) -> Place:
    if not isinstance(data, list) or not 2 <= len(data) <= 3:
        raise InvalidState("is no sequence and key in a list", path=path)
    sequence, key, *rest = data
    extras = rest[0] if rest else {}
    if type(sequence) is not int:
        raise InvalidState("must be a whole number above the one before", path=f"{path}[0]")
    if not isinstance(extras, dict) or not set(extras) <= set(_EXTRAS):
        raise InvalidState(f"is no object of {' and '.join(_EXTRAS)}", path=f"{path}[2]")
    digest = extras.get("first_digest")
    if digest is not None and key is None:
        raise InvalidState("is of a key, and there is none", path=f"{path}[2].first_digest")
    return Place(
        sequence,
        None if key is None else check_text(key, path=f"{path}[1]"),
        None if digest is None else _digest(digest, path=f"{path}[2].first_digest"),
        _moment(extras.get("timestamp"), path=f"{path}[2].timestamp"),
    )


def _digest(value: Any, *, path: str) -> bytes:
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != DIGEST_BYTES:
        raise InvalidState(f"is no digest of {DIGEST_BYTES} bytes in hex", path=path)
    return digest


def _next_sequence(data: Mapping[str, Any], places: Sequence[Place]) -> int:
    value = data.get("next_sequence", following(places))
    if type(value) is not int or not following(places) <= value < BIGINT:
        raise InvalidState("is no whole number above every sequence", path="next_sequence")
    return value


def _text_of(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()


def _moment(value: Any, *, path: str) -> datetime | None:
    """Return a moment, or None for null. Raises: InvalidState if databases cannot keep it."""
    if value is None:
        return None
    moment = parse_timestamp(value)
    if moment is None or datetime.fromisoformat(value).tzinfo is None:
        raise InvalidState(
            "impossible date: must be ISO 8601 with a time zone, in the years 3 to 9997", path=path
        )
    return moment
