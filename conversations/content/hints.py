"""How a caller turns a value into JSON: the end of an InvalidState's message. Pure.

Classes of other libraries are recognised by name and method, so none is imported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Set as AbstractSet
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

_CLASSES = {
    "conversations.storage.messages.StoredMessage": "pass its message",
    "django.db.models.base.Model": "use django.forms.models.model_to_dict()",
    "django.utils.functional.Promise": "use str()",
    "google.protobuf.message.Message": "use google.protobuf.json_format.MessageToDict()",
}
# Attributes of classes, tried in this order.
_MARKS = {
    "model_dump": "call its model_dump(mode='json')",
    "to_dict": "call its to_dict()",
    "__fields__": "call its dict()",
    "__dataclass_fields__": "use dataclasses.asdict()",
    "__attrs_attrs__": "use attrs.asdict()",
    "__struct_fields__": "use msgspec.to_builtins()",
    "isoformat": "use isoformat()",
    "tolist": "call its tolist()",
}
_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (Enum, "use its value"),
    ((UUID, BaseException), "use str()"),
    (Decimal, "use str() or float()"),
    (timedelta, "use total_seconds()"),
    ((bytes, bytearray, memoryview), "decode it, or use base64"),
    (AbstractSet, "use sorted() or list()"),
    (Mapping, "use dict()"),
    ((deque, range, Iterable), "use list()"),
    (int, "it has more digits than Python writes"),
)


def hint_for(value: Any) -> str:
    """Return how to make JSON of a value, such as "use isoformat()"; never the value's content."""
    if isinstance(value, type):
        return "pass an instance, not its class"
    kind = type(value)
    for base in kind.__mro__:
        if hint := _CLASSES.get(f"{base.__module__}.{base.__qualname__}"):
            return hint
    for mark, hint in _MARKS.items():
        if hasattr(kind, mark):
            return hint
    for types, hint in _TYPES:
        if isinstance(value, types):
            return hint
    return "pass a value that json.dumps takes"


def is_record(value: Any) -> bool:
    """Whether a value is one object that yields its fields when iterated, like pydantic's."""
    return hasattr(type(value), "model_dump") or hasattr(type(value), "__fields__")
