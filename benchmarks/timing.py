"""Times of operations that are measured in turns, and what a run says of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True)
class Series:
    """Seconds of each call of one operation of one contender, on the clock and of this thread."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Return the median of the seconds on the clock."""
        return median(self.seconds)

    @property
    def p95(self) -> float:
        """Return the seconds that nineteen of twenty calls do not exceed."""
        return percentile(self.seconds, 0.95)

    def timed(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Call, and remember what that took. Returns: what the call gave."""
        cpu, started = time.thread_time(), time.perf_counter()
        result = call(*arguments, **named)
        ended = time.perf_counter()
        self.cpu_seconds.append(time.thread_time() - cpu)
        self.seconds.append(ended - started)
        return result


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def rotations(contenders: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the contenders for ever, each of them first as often as the others."""
    first = 0
    while True:
        yield [*contenders[first:], *contenders[:first]]
        first = (first + 1) % len(contenders)


def balanced(contenders: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the contenders for ever, each as often first as the others, and behind each of them.

    In a rotation each runs behind the same other one, which leaves the caches full of its code: a
    load took 0.31 ms always behind a store that shares code with it, and 0.38 ms behind each of
    them in turn. The orders are squares of E. J. Williams (1949); they repeat after as many as
    there are contenders, or twice as many where that number is odd.
    """
    count = len(contenders)
    # 0, 1, n - 1, 2, n - 2, ...: neighbours differ by every step once.
    zigzag = [(place + 1) // 2 * (1 if place % 2 else -1) for place in range(count)]
    for first in cycle(range(count)):
        order = [contenders[(first + step) % count] for step in zigzag]
        yield order
        if count % 2:
            yield order[::-1]


@contextmanager
def settled_heap() -> Iterator[None]:
    """Keep the collector off what stands in memory already: only what is measured costs."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
