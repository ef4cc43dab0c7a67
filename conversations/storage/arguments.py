"""Check the arguments of callers, before any SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from uuid import UUID

from conversations.content.changes import OWN_KEYS
from conversations.content.codec import storable
from conversations.exceptions import InvalidState
from flags.texts import quoted

ConversationId = str | UUID
LONGEST_ID = 255
# More than any table holds, and less than any database's largest integer.
UNLIMITED = 2**62


def lazy(value: Any) -> bool:
    """Whether a value is a lazy object: isinstance calls it a str, but drivers refuse it."""
    return type(value) is not value.__class__


class Texts(Protocol):
    """Texts in an order: a list, a tuple or a view of a dict, but neither a set nor a str.

    A str is a sequence of texts as well; its `__contains__` excludes it for type checkers.
    """

    def __contains__(self, value: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def __reversed__(self) -> Iterator[str]: ...


def check_id(conversation_id: Any) -> str:
    """Return a conversation's id as text. Raises: InvalidState for anything else."""
    if isinstance(conversation_id, UUID):
        return str(conversation_id)
    if type(conversation_id) is not str and (
        lazy(conversation_id) or not isinstance(conversation_id, str)
    ):
        raise InvalidState(
            f"is a {type(conversation_id).__name__}, not a string", path="conversation_id"
        )
    if not 0 < len(conversation_id) <= LONGEST_ID or not storable(conversation_id):
        raise InvalidState(
            f"must have 1 to {LONGEST_ID} characters, without NUL and surrogates",
            path="conversation_id",
        )
    return conversation_id


def check_keys(keys: Any, *, count: int) -> list[str] | None:
    """Return the callers' keys, one per message. Raises: InvalidState naming the first bad one."""
    if keys is None:
        return None
    if isinstance(keys, str | bytes | set | frozenset) or not hasattr(keys, "__iter__"):
        # A set has no order, so a key would belong to a message by chance.
        raise InvalidState(f"is a {type(keys).__name__}, not a list", path="keys")
    found = list(keys)
    if len(found) != count:
        raise InvalidState(f"{len(found)} keys for {count} messages", path="keys")
    seen: set[str] = set()
    for index, key in enumerate(found):
        path = f"keys[{index}]"
        if lazy(key) or not isinstance(key, str):
            raise InvalidState(f"is a {type(key).__name__}, not a string", path=path)
        if not 0 < len(key) <= LONGEST_ID or not storable(key) or key.startswith(OWN_KEYS):
            raise InvalidState(
                f"must have 1 to {LONGEST_ID} characters, without NUL and surrogates,"
                f" and not begin with {OWN_KEYS}",
                path=path,
            )
        if key in seen:
            raise InvalidState("is given twice", path=path)
        seen.add(key)
    return found


def check_reference(reference: Any, *, path: str = "key_or_sequence") -> int | str:
    """Return a key (a string) or a sequence (an integer). Raises: InvalidState otherwise."""
    if isinstance(reference, bool) or lazy(reference) or not isinstance(reference, int | str):
        raise InvalidState(
            f"is a {type(reference).__name__}, neither a key nor a sequence", path=path
        )
    return reference


def check_references(references: Any) -> list[int | str]:
    """Return keys and sequences; a single one stands for a list of one."""
    if isinstance(references, int | str):
        references = [references]
    if not isinstance(references, Sequence) or isinstance(references, bytes | bytearray):
        raise InvalidState(
            f"is a {type(references).__name__}, not a list", path="keys_or_sequences"
        )
    return [
        check_reference(reference, path=f"keys_or_sequences[{index}]")
        for index, reference in enumerate(references)
    ]


def check_limit(value: Any, *, path: str) -> int | None:
    """Return a number from 0, or None for none. Raises: InvalidState for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or lazy(value) or not isinstance(value, int) or value < 0:
        raise InvalidState("must be an integer from 0, or None", path=path)
    return min(value, UNLIMITED)


def check_size(value: Any) -> int:
    """Return the size of a page. Raises: InvalidState unless it is a positive integer."""
    if isinstance(value, bool) or lazy(value) or not isinstance(value, int) or value < 1:
        raise InvalidState("must be an integer from 1", path="limit")
    return min(value, UNLIMITED)


def check_name(value: Any, *, path: str) -> str:
    """Return a role or the name of a tool. Raises: InvalidState unless it is a string."""
    if lazy(value) or not isinstance(value, str):
        raise InvalidState(f"is a {type(value).__name__}, not a string", path=path)
    return value


def check_flag(value: Any, *, path: str) -> bool:
    """Return a flag. Raises: InvalidState unless it is a bool."""
    if type(value) is not bool:
        raise InvalidState(f"is a {type(value).__name__}, not True or False", path=path)
    return value


def check_choice(value: Any, *, of: Sequence[str], path: str) -> str:
    """Return one of a few words. Raises: InvalidState for anything else."""
    if not isinstance(value, str) or type(value) is not value.__class__ or value not in of:
        words = " or ".join(map(repr, of))
        raise InvalidState(f"must be {words}, not {quoted(value)}", path=path)
    return value


def check_threshold(value: Any) -> float | None:
    """Return a quality threshold, or None. Raises: InvalidState unless it is a number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidState("must be a number, or None", path="context_quality_threshold")
    # Qualities are in 0..1, so any threshold beyond -1 or 2 selects the same.
    return float(min(max(value, -1), 2))


def check_class(kind: Any) -> Any:
    """Return a class of states. Raises: InvalidState if `load_state` cannot make one."""
    problem = shortcoming(kind)
    if problem is not None:
        raise InvalidState(problem, path="state_class")
    return kind


def shortcoming(kind: Any) -> str | None:
    """Return why a class cannot be a state class, or None."""
    if not isinstance(kind, type):
        return f"names a {type(kind).__name__}, which is no class"
    for name in ("from_dict", "to_dict"):
        if not callable(getattr(kind, name, None)):
            return f"names {kind.__qualname__}, which has no method {name}"
    has_room = kind.__dictoffset__ or all(hasattr(kind, n) for n in ("_baseline", "load_info"))
    return None if has_room else f"names {kind.__qualname__}, whose __slots__ leave no room"
