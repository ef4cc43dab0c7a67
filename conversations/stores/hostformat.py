"""What a host's column holds of a conversation: its own JSON, as text or in a JSON column."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conversations.codec import storable
from conversations.documents import Document, check_types
from conversations.exceptions import InvalidState

# What a function of the host's may raise for JSON that it does not expect.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class HostFormat:
    """The host's functions between its JSON and `AgentState.to_dict()`, and the column's kind."""

    to_state: Callable[[Any], Any]
    from_state: Callable[[Any], Any]
    as_json: bool
    as_jsonb: bool

    def document_of(self, value: Any) -> Document:
        """Return the document that a column's value holds. Raises: InvalidState."""
        if value is None or value == "":
            # The host made the row ahead of the first save.
            return Document.from_dict({})
        try:
            data = value if self.as_json else json.loads(value)
            data = self.to_state(data)
        except _REFUSALS as error:
            # Not its text: the host's function may quote what it was given.
            raise InvalidState(f"is no state ({type(error).__name__})", path="blob") from error
        if not isinstance(data, dict):
            raise InvalidState(f"is a {type(data).__name__}, not an object", path="blob")
        check_types(data)
        return Document.from_dict(data)

    def value_of(self, document: Document) -> Any:
        """Return the column's value for a document. Raises: InvalidState when it holds it not."""
        try:
            data = self.from_state(document.to_dict())
            text = json.dumps(data)
        except _REFUSALS as error:
            raise InvalidState(
                f"from_state cannot turn it into the host's JSON ({type(error).__name__})",
                path="state",
            ) from error
        if not self.as_json:
            return text
        try:
            json.dumps(data, allow_nan=False)
        except ValueError as error:
            raise InvalidState("the legacy JSON column cannot hold NaN", path="state") from error
        if self.as_jsonb and _refused_by_jsonb(text):
            raise InvalidState(
                "the legacy JSON column cannot hold NUL or lone surrogates", path="state"
            )
        return data


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
