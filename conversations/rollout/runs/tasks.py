"""The task of a run: the keys it walks over, and the work on each conversation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from django.db.models import QuerySet

from conversations import conf
from conversations.models import ConversationState
from conversations.stores.base import LegacyStore
from conversations.stores.sql.expressions import between, key_after

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one conversation.

    It is counted as `count`. If it is `noted`, the run's record names it, with the reason and the
    reason's class (a stable slug). `unanswered` says that it may work the next time.
    """

    conversation_id: str
    count: str
    noted: bool = False
    failed: bool = False
    unanswered: bool = False
    reason: str = ""
    reason_class: str = ""


class Source(Protocol):
    """The rows that a walk passes, by primary key. Keys are JSON values."""

    def last_key(self) -> Any:
        """Return the greatest key, None without any."""

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        """Return the key of the `count`-th row behind `low` (None: the first), or the last one.

        Returns: None if there is no row up to `upper`.
        """

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        """Return the conversations behind `low` up to and including `high`."""


class Task(Protocol, Generic[Result]):
    """One kind of run: one walk or several, stages, one after the other."""

    def source(self, stage: int) -> Source:
        """Return the rows that a stage walks over."""

    def goes_on(self, stage: int, looked: Mapping[int, int]) -> bool:
        """Whether another stage follows. `looked`: conversations so far, by stage."""

    def mark(self, stage: int) -> str | None:
        """Return a note of legacy for the beginning of a stage; None: the last note stays."""

    def share(self, ids: Sequence[str]) -> float:
        """Return how much of a batch's limit of locks these use; above 1 is too much."""

    def do(self, ids: Sequence[str]) -> Sequence[Result]:
        """Work on each, in the batch's transaction. Returns: the results, in order.

        A failure of one must not spoil the others.
        """

    def met(self, ids: Sequence[str], stage: int, low: Any) -> Collection[str]:
        """Return those that an earlier batch of the stage, up to `low`, has met already."""

    def outcome(self, result: Result, stage: int) -> Outcome:
        """Return the outcome of a conversation's result, in that stage."""


class Tables:
    """The rows of the tables."""

    def last_key(self) -> Any:
        return self.rows().order_by("-pk").values_list("pk", flat=True).first()

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        return key_after(self.rows(), low, upper, count=count)

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        rows = between(self.chosen(), low, high, name="pk").order_by("pk")
        return list(rows.values_list("conversation_id", flat=True))

    def rows(self) -> QuerySet[ConversationState]:
        """Return the rows of the walk."""
        return ConversationState.rows.using(conf.alias())

    def chosen(self) -> QuerySet[ConversationState]:
        """Return those rows that need the work."""
        return self.rows()


class Blobs:
    """The rows of legacy, each conversation once, for a run that began at `began`.

    A blob that was in flight when the walk passed its range is met again with a later one of its
    conversation. Only blobs that had settled before the run began have certainly been met.
    """

    def __init__(self, legacy: LegacyStore, began: datetime) -> None:
        self.legacy = legacy
        self.settled = began - conf.get("LEGACY_SETTLES_WITHIN")

    def last_key(self) -> Any:
        return self.legacy.last_key()

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        return self.legacy.key_after(low, upper, count=count)

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        return self.legacy.ids_between(low, high, settled=self.settled)


class Nothing:
    """No row at all."""

    def last_key(self) -> Any:
        return None

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        return None

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        return ()
