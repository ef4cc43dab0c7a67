"""Moving reads away from a store that keeps failing, to another one that is current.

Pure but for its log: the caller passes the clock. Each process counts in memory for itself, also
while operations are not measured. A breaker never decides about a write. It chooses only among
the stores that it is given, and these hold the conversation's latest content.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flags.conf import Limits

logger = logging.getLogger("flags")

# Reads count for this long, as in `flags.health`, and are forgotten slice by slice.
SPAN_SECONDS = 300.0
SLICE_SECONDS = 10.0
# How long a store is left alone before a single read tries it again.
REST_SECONDS = 30.0

Name = TypeVar("Name", bound=str)


@dataclass(slots=True)
class _Slice:
    began: float
    reads: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Circuit:
    """The recent reads of one store. `opened`: when reads were moved away, None if they are not."""

    slices: deque[_Slice] = field(default_factory=deque)
    opened: float | None = None
    next_trial: float = 0.0

    def count(self, now: float, *, failed: bool) -> tuple[int, int]:
        """Add a read. Returns: the reads in the span, and the failures among them."""
        while self.slices and now - self.slices[0].began >= SPAN_SECONDS:
            self.slices.popleft()
        if not self.slices or now - self.slices[-1].began >= SLICE_SECONDS:
            self.slices.append(_Slice(now))
        self.slices[-1].reads += 1
        self.slices[-1].failed += failed
        return sum(each.reads for each in self.slices), sum(each.failed for each in self.slices)


class Breaker:
    """Knows which stores' reads fail too often, so that these stores come second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begin anew, for a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._circuits: dict[str, _Circuit] = {}

    def opened(self) -> list[str]:
        """Return the stores whose reads are moved away now, by name."""
        with self._lock:
            found = [name for name, each in self._circuits.items() if each.opened is not None]
        return sorted(map(str, found))

    def ordered(self, stores: Sequence[Name]) -> tuple[Name, ...]:
        """Return the stores, best first, with the first one last while its reads are moved.

        Every `REST_SECONDS` one read tries the first store all the same. The order stays when the
        reads of all other stores are moved too.
        """
        first, *others = stores
        with self._lock:
            if not any(self._closed(name) for name in others) or self._lets_through(first):
                return tuple(stores)
        return (*others, first)

    def lets_through(self, store: str) -> bool:
        """Whether a read may go to a store; while its reads are moved away, only a trial may."""
        with self._lock:
            return self._lets_through(store)

    def observed(self, store: str, *, failed: bool, limits: Limits) -> None:
        """Count a read of a store that was chosen among several."""
        now = self._clock()
        with self._lock:
            circuit = self._circuits.setdefault(store, _Circuit())
            if circuit.opened is not None:
                self._tried(circuit, store, now, failed=failed)
                return
            reads, failures = circuit.count(now, failed=failed)
            if not failed or reads < limits.minimum or failures / reads < limits.critical:
                return
            circuit.opened, circuit.next_trial = now, now + REST_SECONDS
        logger.error("reads of %s are moved away: %s of %s failed", store, failures, reads)

    def _closed(self, name: str) -> bool:
        circuit = self._circuits.get(name)
        return circuit is None or circuit.opened is None

    def _lets_through(self, name: str) -> bool:
        circuit, now = self._circuits.get(name), self._clock()
        if circuit is None or circuit.opened is None:
            return True
        if now < circuit.next_trial:
            return False
        # The trial may never report its end, so the next one has its own time.
        circuit.next_trial = now + REST_SECONDS
        return True

    def _tried(self, circuit: _Circuit, store: str, now: float, *, failed: bool) -> None:
        if failed:
            circuit.next_trial = now + REST_SECONDS
            return
        seconds = now - (circuit.opened or now)
        circuit.opened = None
        circuit.slices.clear()
        logger.warning("reads of %s are no longer moved away, after %.0f s", store, seconds)


# One for the stores, and one for a replica and its primary.
reads, replicas = Breaker(), Breaker()
for _each in (reads, replicas):
    os.register_at_fork(after_in_child=_each.forget)
