"""Sums of the counts and durations of operations. Pure: no clock, no database."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

# Upper bounds of the cells of a histogram in seconds, each twice the one before; the last cell
# has no bound. A percentile is exact to its cell, and interpolated within the cell.
BOUNDS: tuple[float, ...] = tuple(0.00025 * float(2**power) for power in range(15))


@dataclass(slots=True)
class Measure:
    """The counts, ends and durations of one operation on one store.

    `seconds` is the sum of the durations; `cells` counts them, one cell per bound and a last one.
    """

    count: int = 0
    errors: int = 0
    fallbacks: int = 0
    stale: int = 0
    mismatches: int = 0
    seconds: float = 0.0
    cells: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def observe(
        self,
        seconds: float | None,
        *,
        error: bool = False,
        fallback: bool = False,
        stale: bool = False,
        mismatch: bool = False,
    ) -> None:
        """Add one operation; `seconds` is None if its duration is not to count."""
        self.count += 1
        self.errors += error
        self.fallbacks += fallback
        self.stale += stale
        self.mismatches += mismatch
        if seconds is not None:
            self.seconds += seconds
            self.cells[bisect_left(BOUNDS, seconds)] += 1

    def add(self, other: Measure) -> None:
        """Add the counts of another measure."""
        self.count += other.count
        self.errors += other.errors
        self.fallbacks += other.fallbacks
        self.stale += other.stale
        self.mismatches += other.mismatches
        self.seconds += other.seconds
        self.cells = [mine + theirs for mine, theirs in zip(self.cells, other.cells, strict=True)]

    @property
    def error_ratio(self) -> float:
        """Return the share of operations that failed, 0 when there was none."""
        return self.errors / self.count if self.count else 0.0

    @property
    def p50(self) -> float | None:
        """Return the median in seconds, None when there was no operation."""
        return percentile(self.cells, 0.5)

    @property
    def p95(self) -> float | None:
        """Return the 95th percentile in seconds, None when there was no operation."""
        return percentile(self.cells, 0.95)

    @property
    def p99(self) -> float | None:
        """Return the 99th percentile in seconds, None when there was no operation."""
        return percentile(self.cells, 0.99)


def percentile(cells: Sequence[int], share: float) -> float | None:
    """Return the duration in seconds that `share` (0..1) of the observations did not exceed.

    Interpolated linearly in its cell; a duration above every bound counts as twice the last one.
    Returns: None when nothing was observed.
    """
    total = sum(cells)
    if not total:
        return None
    wanted, below = share * total, 0
    for cell, count in enumerate(cells):
        if count and below + count >= wanted:
            low = BOUNDS[cell - 1] if cell else 0.0
            high = BOUNDS[cell] if cell < len(BOUNDS) else 2 * BOUNDS[-1]
            return low + (high - low) * (wanted - below) / count
        below += count
    return 2 * BOUNDS[-1]
