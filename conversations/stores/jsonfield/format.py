"""The form of a conversation in a host's column: its own JSON, as text or in a JSON column.

Without `from_state`, a save keeps the shape of the stored JSON: a field that was absent, and still
has its default, stays absent. An absent field loads as its default, so digests do not see it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from conversations.content.codec import storable
from conversations.content.digests import digest_of, loose_digest
from conversations.content.document import DEFAULTS, ITEMS, MESSAGES, Document
from conversations.content.validation import check_types
from conversations.exceptions import InvalidState
from flags.causes import Withheld
from flags.texts import shown

# Errors that a function of the host may raise for JSON that it does not expect.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class HostFormat:
    """The host's functions between its JSON and `AgentState.to_dict()`, and the column's kind."""

    to_state: Callable[[Any], Any] | None
    from_state: Callable[[Any], Any] | None
    as_json: bool
    as_jsonb: bool

    def document_of(self, value: Any) -> Document:
        """Return the document in a column's value. Raises: InvalidState."""
        if value is None or value == "":
            # The host created the row before the first save.
            return Document.from_dict({})
        data, failure = _tried(self._state_of, value)
        if failure is not None:
            raise InvalidState(f"is no state ({failure.name})", path="blob") from failure
        if not isinstance(data, dict):
            raise InvalidState(f"is a {type(data).__name__}, not an object", path="blob")
        check_types(data)
        return Document.from_dict(data)

    def _state_of(self, value: Any) -> Any:
        data = value if self.as_json else json.loads(value)
        return data if self.to_state is None else self.to_state(data)

    def value_of(self, document: Document, *, held: Any = None) -> Any:
        """Return the column's value for a document; `last_ours` is the column's current value.

        Raises: InvalidState if the column, or the host's own JSON, cannot hold the document.
        """
        data = self._data_of(document, held)
        text, failure = _tried(json.dumps, data)
        if failure is not None:
            raise _unconverted(failure) from failure
        if self.as_json:
            _check_json_column(data, text, as_jsonb=self.as_jsonb)
        value = data if self.as_json else text
        if self.to_state is not None or self.from_state is not None:
            self._check_kept(document, json.loads(text) if self.as_json else text)
        return value

    def _data_of(self, document: Document, held: Any) -> Any:
        if self.from_state is None:
            return _in_shape(document.to_dict(), self._names_in(held))
        data, failure = _tried(self.from_state, document.to_dict())
        if failure is not None:
            raise _unconverted(failure) from failure
        return data

    def _names_in(self, held: Any) -> Sequence[str] | None:
        """Return the names of the state's fields in a column's value; None if it holds no state."""
        if held is None or held == "":
            return None
        data, _ = _tried(self._state_of, held)
        return list(data) if isinstance(data, dict) else None

    def _check_kept(self, document: Document, value: Any) -> None:
        """Raise InvalidState if a load would not return the document that from_state was given."""
        again = self.document_of(value)
        digest = loose_digest if self.as_jsonb else digest_of
        ours = {MESSAGES: document.messages, ITEMS: document.items, **document.fields}
        theirs = {MESSAGES: again.messages, ITEMS: again.items, **again.fields}
        for name in ours | theirs:
            kept = name in ours and name in theirs
            if not kept or digest(ours[name]) != digest(theirs[name]):
                raise InvalidState(
                    "changes when from_state and then to_state convert it: let the host's JSON"
                    " keep it",
                    path=shown(name),
                )


def _tried(function: Callable[[Any], Any], value: Any) -> tuple[Any, Withheld | None]:
    """Return the result of a function, or why it failed.

    The reason has no text of the error: that may quote the value, and json's holds all of it.
    """
    try:
        return function(value), None
    except _REFUSALS as error:
        return None, Withheld.of(error)


def _unconverted(failure: Withheld) -> InvalidState:
    return InvalidState(
        f"from_state cannot turn it into the host's JSON ({failure.name})", path="state"
    )


def _in_shape(data: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Return a state without defaults that a host's JSON did not name, in that JSON's order.

    Fields unknown to AgentState keep their order in the state.
    """
    if names is None:
        return data
    kept = {
        name: value
        for name, value in data.items()
        if name in names or name not in DEFAULTS or value != DEFAULTS[name]
    }
    there = [name for name in names if name in kept]
    ordered = [*there, *(name for name in kept if name not in there)]
    if _unknown(ordered) != _unknown(kept):
        return kept
    return {name: kept[name] for name in ordered}


def _unknown(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in DEFAULTS]


def _check_json_column(data: Any, text: str, *, as_jsonb: bool) -> None:
    """Raise InvalidState for values that a JSON column cannot hold."""
    if _tried(partial(json.dumps, allow_nan=False), data)[1] is not None:
        raise InvalidState("the legacy JSON column cannot hold NaN", path="state")
    if as_jsonb and _refused_by_jsonb(text):
        raise InvalidState(
            "the legacy JSON column cannot hold NUL or lone surrogates", path="state"
        )


def _refused_by_jsonb(text: str) -> bool:
    """Whether jsonb refuses this JSON text: it holds a NUL or a lone surrogate."""
    if "\\u" not in text:
        return False
    pending = [json.loads(text)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not storable(value):
                return True
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
    return False
