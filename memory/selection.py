"""Selecting the context items of a load by their quality. Pure."""

from __future__ import annotations

from typing import Any


def quality_of(item: Any) -> float | None:
    """Return an item's quality in 0..1, or None if it is unknown.

    Quality is `relevance_score` if that is a number in 0..1; a boolean is no number.
    """
    score = item.get("relevance_score") if isinstance(item, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return None
    return float(score)


def selected(item: Any, *, threshold: float | None) -> bool:
    """Whether a load with this threshold gives the item: an unknown quality always passes."""
    if threshold is None:
        return True
    quality = quality_of(item)
    return quality is None or quality >= threshold
