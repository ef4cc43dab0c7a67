"""The state of an assistant, as callers hold it between a load and a save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Protocol, Self, TypedDict

from conversations.content.baseline import Baseline
from conversations.content.document import BASELINE_KEY
from conversations.exceptions import InvalidState
from flags.texts import shown

UNCOMMITTED_KEY = "_uncommitted"
_PRIVATE = ("extra", "load_info", BASELINE_KEY, UNCOMMITTED_KEY)


class StateLike(Protocol):
    """The argument of `save_state`: an AgentState, or another object with `to_dict()`."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return the fields of a state by name; see `AgentState.to_dict`."""
        ...


class LoadableState(StateLike, Protocol):
    """The result of `load_state`: its class is STATE_CLASS, or the argument `state_class`.

    Instances must accept the attributes `load_info` and `_baseline`.
    """

    @classmethod
    def from_dict(cls, data: dict[str, Any], /) -> Self:
        """Return the state of a mapping; see `AgentState.from_dict`."""
        ...


class SaveResult(TypedDict):
    """The result of a write. `committed` is False inside the caller's own transaction."""

    success: bool
    conversation_id: str
    revision: int
    stores: list[str]
    fallback: bool
    committed: bool


@dataclass(frozen=True, slots=True)
class LoadInfo:
    """The store a state came from, and how many messages and items the load left out.

    `messages_beyond_limit`: how many messages more than `max_messages` were returned, so that a
    provider accepts the first of them. A negative number: how many fewer.
    """

    store: str
    revision: int
    stale: bool = False
    hidden_messages: int = 0
    hidden_items: int = 0
    messages_beyond_limit: int = 0


@cache
def _names(cls: Any) -> tuple[str, ...]:
    """Return the names of a state's fields in `to_dict`, in order."""
    return tuple(each.name for each in fields(cls) if each.name not in _PRIVATE)


@cache
def _attributes(cls: Any) -> frozenset[str]:
    """Return the names that a class of states declares, for itself or by its bases."""
    declared: set[str] = set()
    for base in cls.__mro__:
        declared.update(vars(base), vars(base).get("__annotations__", ()))
    return frozenset(declared)


@dataclass
class AgentState:
    """The state of an assistant: messages, memory context and a few working fields.

    `extra` holds the fields that this class does not know; a load returns them unchanged.
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
    # The baseline as saves inside the caller's transaction will leave it; see storage.states.
    _uncommitted: Any = field(default=None, compare=False, repr=False, kw_only=True)

    def to_dict(self, *, with_baseline: bool | None = None) -> dict[str, Any]:
        """Return the state as a mapping: the known fields in order, then the unknown ones.

        The baseline is included (key `_baseline`) if the load left out messages or items, or as
        `with_baseline` says.

        Raises: InvalidState if `extra` is no mapping or repeats a known field, and for an attribute
        that is no field, since nothing would store it.
        """
        self._check_attributes()
        if not isinstance(self.extra, Mapping):
            raise InvalidState(f"is a {type(self.extra).__name__}, not a mapping", path="extra")
        kind: Any = type(self)
        data = {name: getattr(self, name) for name in _names(kind)}
        for name in self.extra:
            if name in data or name == BASELINE_KEY:
                raise InvalidState("repeats a field of the state", path=f"extra.{shown(name)}")
        data |= self.extra
        baseline = self._baseline
        if baseline is not None and with_baseline is None:
            # Without it, a save could not tell what was left out from what was removed.
            with_baseline = bool(baseline.hidden_messages or baseline.hidden_items)
        if baseline is not None and with_baseline:
            data[BASELINE_KEY] = baseline.to_json()
        return data

    def _check_attributes(self) -> None:
        """Raise InvalidState for an attribute that looks like a field and is none.

        A subclass may have attributes of its own: of those, only a misspelt field is refused.
        """
        kind: Any = type(self)
        if vars(self).keys() <= _attributes(kind):
            return
        known = [*_names(kind), "extra"]
        for name in vars(self):
            if name in _attributes(kind) or name.startswith("_"):
                continue
            near = get_close_matches(name, known, n=1, cutoff=0.6 if kind is AgentState else 0.85)
            if near:
                raise InvalidState(
                    f"is no field of a state: did you mean {near[0]}?", path=shown(name)
                )
            if kind is AgentState:
                raise InvalidState(
                    "is no field of a state: put it into extra, or name a subclass that has it"
                    " as STATE_CLASS",
                    path=shown(name),
                )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the state of a mapping: absent fields take defaults, unknown ones go to `extra`.

        Raises: InvalidState if `_baseline` is not a value of `to_dict`.
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
