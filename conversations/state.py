"""The state of an assistant, as callers hold it between a load and a save."""

from __future__ import annotations

import base64
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Self, TypedDict

from conversations.digests import DIGEST_BYTES, split
from conversations.documents import BASELINE_KEY, Known
from conversations.exceptions import InvalidState
from conversations.seals import Seal
from flags.phases import StoreName

UNCOMMITTED_KEY = "_uncommitted"
_PRIVATE = ("extra", "load_info", BASELINE_KEY, UNCOMMITTED_KEY)
# The largest integer that every database takes.
MOST = 2**63 - 1
_STORES = frozenset(StoreName)
_BYTES = ("message_digests", "item_digests", "stored_history_digest")


class SaveResult(TypedDict):
    """What a write did. `committed` is False inside the caller's own transaction."""

    success: bool
    conversation_id: str
    revision: int
    stores: list[str]
    fallback: bool
    committed: bool


@dataclass(frozen=True, slots=True)
class LoadInfo:
    """Where a state came from, and how many messages and items the load left out."""

    store: str
    revision: int
    stale: bool = False
    hidden_messages: int = 0
    hidden_items: int = 0


class Baseline:
    """What a load gave, so that a save can tell "removed" from "never seen". Immutable.

    It is of one conversation, `conversation_id`: saved under another id, a state says what
    the lists are. `store`, `revision` and `version` say what was read (see changes.View).
    `sequences` and `message_digests` are the messages given, in order (from legacy: their
    places, from 1); `item_ids` (sequences) and `item_digests` the items; `field_digests` the
    other fields. Of the `hidden_messages`, `messages_before` stood before the first that was
    given. `history_length` is how long the step log was that was given, and
    `stored_history_…` what was stored then (after a save: with what others had added). `token` is
    random, and makes a repeated save recognisable. The seals prove cheaply, in this process,
    that the lists are still what was given.
    """

    _PARTS = (
        "conversation_id",
        "field_digests",
        "hidden_items",
        "hidden_messages",
        "history_length",
        "item_digests",
        "item_ids",
        "message_digests",
        "messages_before",
        "revision",
        "sequences",
        "store",
        "stored_history_digest",
        "stored_history_length",
        "token",
        "version",
    )

    conversation_id: str
    store: str
    revision: int
    version: str
    # Arrays, because a tuple takes five times as much, and this is held as long as the state.
    sequences: array[int]
    message_digests: bytes
    item_ids: array[int]
    item_digests: bytes
    field_digests: dict[str, bytes]
    history_length: int
    stored_history_length: int
    stored_history_digest: bytes
    hidden_messages: int
    hidden_items: int
    messages_before: int
    token: str
    message_seal: Seal | None
    item_seal: Seal | None

    def __init__(
        self,
        *,
        conversation_id: str,
        store: str,
        revision: int,
        version: str = "",
        sequences: Sequence[int] = (),
        message_digests: bytes = b"",
        item_ids: Sequence[int] = (),
        item_digests: bytes = b"",
        field_digests: Mapping[str, bytes] | None = None,
        history_length: int = 0,
        stored_history_length: int = 0,
        stored_history_digest: bytes = b"",
        hidden_messages: int = 0,
        hidden_items: int = 0,
        messages_before: int = 0,
        token: str = "",
        message_seal: Seal | None = None,
        item_seal: Seal | None = None,
    ) -> None:
        vars(self).update(
            conversation_id=conversation_id,
            store=store,
            revision=revision,
            version=version,
            sequences=array("q", sequences),
            message_digests=message_digests,
            item_ids=array("q", item_ids),
            item_digests=item_digests,
            field_digests=dict(field_digests or {}),
            history_length=history_length,
            stored_history_length=stored_history_length,
            stored_history_digest=stored_history_digest,
            hidden_messages=hidden_messages,
            hidden_items=hidden_items,
            messages_before=messages_before,
            token=token or os.urandom(8).hex(),
            message_seal=message_seal,
            item_seal=item_seal,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a baseline never changes")

    def __deepcopy__(self, memo: Any) -> Baseline:
        return self

    def __reduce__(self) -> Any:
        return (Baseline.from_json, (self.to_json(),))

    @property
    def given_messages(self) -> list[bytes]:
        """Return the digest of each message that was given, in order."""
        return split(self.message_digests)

    @property
    def given_items(self) -> list[bytes]:
        """Return the digest of each context item that was given, in order."""
        return split(self.item_digests)

    def known_messages(self, values: Any) -> Known:
        """Return what is known of a list of messages that began as what was given."""
        return _known(values, self.message_digests, self.message_seal)

    def known_items(self, values: Any) -> Known:
        """Return what is known of a list of context items that began as what was given."""
        return _known(values, self.item_digests, self.item_seal)

    def with_messages(self, digests: Iterable[bytes]) -> Baseline:
        """Return the same baseline, with these digests of the messages given."""
        return Baseline(**vars(self) | {"message_digests": b"".join(digests)})

    @property
    def hides(self) -> bool:
        """Whether the load left anything out."""
        return bool(self.hidden_messages or self.hidden_items)

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as a JSON object."""
        data = {name: getattr(self, name) for name in self._PARTS}
        data["sequences"], data["item_ids"] = list(self.sequences), list(self.item_ids)
        for name in _BYTES:
            data[name] = base64.b64encode(data[name]).decode("ascii")
        data["field_digests"] = {name: d.hex() for name, d in self.field_digests.items()}
        return data

    @classmethod
    def from_json(cls, data: Any) -> Baseline:
        """Return the baseline that `to_json` gave.

        Raises: InvalidState for anything else: a save must not guess what a load left out.
        """
        try:
            values = dict(data)
            for name in _BYTES:
                values[name] = base64.b64decode(values[name], validate=True)
            values["field_digests"] = {
                name: bytes.fromhex(d) for name, d in values["field_digests"].items()
            }
            if not values.keys() <= set(cls._PARTS):
                raise ValueError("unknown parts")
            made = cls(**values)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise InvalidState("is not what to_dict() gave", path=BASELINE_KEY) from error
        if not made._whole:
            raise InvalidState("is not what to_dict() gave", path=BASELINE_KEY)
        return made

    @property
    def _whole(self) -> bool:
        """Whether every part is of its type, and the parts fit together."""
        numbers = [
            self.revision,
            self.history_length,
            self.stored_history_length,
            self.hidden_messages,
            self.hidden_items,
            self.messages_before,
            *self.sequences,
            *self.item_ids,
        ]
        texts = [self.conversation_id, self.store, self.version, self.token]
        return (
            all(type(number) is int and abs(number) <= MOST for number in numbers)
            and all(isinstance(text, str) for text in texts)
            and self.store in _STORES
            and len(self.message_digests) == DIGEST_BYTES * len(self.sequences)
            and len(self.item_digests) == DIGEST_BYTES * len(self.item_ids)
        )


def _known(values: Any, digests: bytes, seal: Seal | None) -> Known:
    return Known(digests, len(seal) if seal is not None and seal.unbroken(values) else 0)


@cache
def _names(cls: Any) -> tuple[str, ...]:
    """Return the fields of a state that `to_dict` gives by name, in order."""
    return tuple(each.name for each in fields(cls) if each.name not in _PRIVATE)


@dataclass
class AgentState:
    """The state of an assistant: messages, memory context and a few working fields.

    `extra` holds the fields that this class does not know; they come back as they were.
    A loaded state also carries `load_info` and a baseline; both survive copy, pickle and
    `dataclasses.replace`, and neither takes part in equality. To send a loaded state through
    a queue as JSON, use `to_dict(with_baseline=True)`.
    """

    user_input: str = ""
    memory_context: list[Any] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    step_count: int = 0
    focus: list[Any] = field(default_factory=list)
    conversation_history: list[Any] = field(default_factory=list)
    last_tool_result: Any = None
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)
    load_info: LoadInfo | None = field(default=None, compare=False, repr=False, kw_only=True)
    _baseline: Baseline | None = field(default=None, compare=False, repr=False, kw_only=True)
    # What saves inside the caller's transaction would make of the baseline; see storage.states.
    _uncommitted: Any = field(default=None, compare=False, repr=False, kw_only=True)

    def to_dict(self, *, with_baseline: bool | None = None) -> dict[str, Any]:
        """Return the state as a mapping: the known fields in order, then the unknown ones.

        The baseline is included (key `_baseline`) when the load left something out, or as
        `with_baseline` says.

        Raises: InvalidState when `extra` is no mapping, or repeats a known field.
        """
        if not isinstance(self.extra, Mapping):
            raise InvalidState(f"is a {type(self.extra).__name__}, not a mapping", path="extra")
        kind: Any = type(self)
        data = {name: getattr(self, name) for name in _names(kind)}
        for name in self.extra:
            if name in data or name == BASELINE_KEY:
                raise InvalidState("repeats a field of the state", path=f"extra.{name}")
        data |= self.extra
        baseline = self._baseline
        if baseline is not None and (baseline.hides if with_baseline is None else with_baseline):
            data[BASELINE_KEY] = baseline.to_json()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the state of a mapping: absent fields take defaults, unknown ones go to `extra`.

        Raises: InvalidState when `_baseline` is not what `to_dict` gave.
        """
        kind: Any = cls
        known = _names(kind)
        stored = data.get(BASELINE_KEY)
        return cls(
            **{name: value for name, value in data.items() if name in known},
            extra={
                name: value
                for name, value in data.items()
                if name not in known and name != BASELINE_KEY
            },
            _baseline=None if stored is None else Baseline.from_json(stored),
        )
