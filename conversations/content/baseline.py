"""What a load returned, so that a save can tell a removed message from one it never returned."""

from __future__ import annotations

import base64
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from conversations.content.digests import DIGEST_BYTES, split
from conversations.content.document import BASELINE_KEY
from conversations.content.fingerprint import Seal
from conversations.content.validation import Known
from conversations.exceptions import InvalidState
from flags.phases import StoreName

# The largest integer that every database takes.
MOST = 2**63 - 1
_STORES = frozenset(StoreName)
_BYTES = ("message_digests", "item_digests", "stored_history_digest")


@dataclass(frozen=True, eq=False, kw_only=True)
class Baseline:
    """What a load returned: a save needs it to tell "removed" from "never seen". Immutable.

    It belongs to one conversation, `conversation_id`. When a state is saved under another id, its
    lists replace that conversation's. `store`, `revision` and `version` identify the content that
    was read (see changes.View). `sequences` and `message_digests` are the returned messages, in
    order (from legacy: their places, from 1). `item_ids` (sequences) and `item_digests` are the
    items, `field_digests` the other fields. `messages_before` counts the `hidden_messages` before
    the first returned one. `history_length` is the length of the returned step log;
    `stored_history_…` describe the stored one (after a save, it includes entries that others
    added). `token` is random, and identifies a repeated save. The seals prove cheaply, in this
    process, that the lists have not changed since the load.
    """

    conversation_id: str
    store: str
    revision: int
    version: str = ""
    # Arrays, because a tuple takes five times as much, and this is held as long as the state.
    sequences: Sequence[int] = ()
    message_digests: bytes = b""
    item_ids: Sequence[int] = ()
    item_digests: bytes = b""
    field_digests: Mapping[str, bytes] = field(default_factory=dict)
    history_length: int = 0
    stored_history_length: int = 0
    stored_history_digest: bytes = b""
    hidden_messages: int = 0
    hidden_items: int = 0
    messages_before: int = 0
    token: str = ""
    message_seal: Seal | None = None
    item_seal: Seal | None = None

    def __post_init__(self) -> None:
        parts = vars(self)
        for name in ("sequences", "item_ids"):
            parts[name] = array("q", parts[name])
        parts["field_digests"] = dict(self.field_digests)
        parts["token"] = self.token or os.urandom(8).hex()

    def __deepcopy__(self, memo: Any) -> Baseline:
        return self

    def __reduce__(self) -> Any:
        return (Baseline.from_json, (self.to_json(),))

    @property
    def given_messages(self) -> list[bytes]:
        """Return the digest of each returned message, in order."""
        return split(self.message_digests)

    @property
    def given_items(self) -> list[bytes]:
        """Return the digest of each returned context item, in order."""
        return split(self.item_digests)

    def known_messages(self, values: Any) -> Known:
        """Return the digests, and the length of the unchanged beginning, of a list of messages."""
        return _known(values, self.message_digests, self.message_seal)

    def known_items(self, values: Any) -> Known:
        """Return the digests, and the length of the unchanged beginning, of a list of items."""
        return _known(values, self.item_digests, self.item_seal)

    def with_messages(self, digests: Iterable[bytes]) -> Baseline:
        """Return the same baseline, with these digests of the messages given."""
        return replace(self, message_digests=b"".join(digests))

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as a JSON object."""
        data = {name: getattr(self, name) for name in _PARTS}
        data["sequences"], data["item_ids"] = list(self.sequences), list(self.item_ids)
        for name in _BYTES:
            data[name] = base64.b64encode(data[name]).decode("ascii")
        data["field_digests"] = {name: d.hex() for name, d in self.field_digests.items()}
        return data

    @classmethod
    def from_json(cls, data: Any) -> Baseline:
        """Return the baseline that `to_json` gave.

        Raises: InvalidState for anything else: a save must not guess which messages a load left
        out.
        """
        made: Baseline | None = None
        try:
            values = dict(data)
            for name in _BYTES:
                values[name] = base64.b64decode(values[name], validate=True)
            values["field_digests"] = {
                name: bytes.fromhex(d) for name, d in values["field_digests"].items()
            }
            if values.keys() <= set(_PARTS):
                made = cls(**values)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            # Refused below: the text of this error repeats the value, which may be private.
            made = None
        if made is None or not made._whole:
            raise InvalidState("is not the value that to_dict() gave", path=BASELINE_KEY)
        return made

    @property
    def _whole(self) -> bool:
        """Whether every part has its type, and the lengths fit together."""
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


# What the pickles of a rolling deploy name: processes of the build before load them too. Set
# here, because a dataclass looks up its annotations in its module.
Baseline.__module__ = "conversations.state"
# All of it but the seals, which prove something in their own process alone.
_PARTS = sorted({each.name for each in fields(Baseline)} - {"message_seal", "item_seal"})


def _known(values: Any, digests: bytes, seal: Seal | None) -> Known:
    return Known(digests, len(seal) if seal is not None and seal.unbroken(values) else 0)
