"""The places where two documents differ, never their content. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conversations.content.digests import (
    digest_of,
    loose_digest,
    same_values,
)
from conversations.content.document import DEFAULTS, Document


def differences(ours: Document, theirs: Document, *, exact: bool) -> Iterator[str]:
    """Yield the places where two documents differ.

    With `exact` False, values that a JSON column cannot tell apart are equal. The names of unknown
    fields are content, so they are only counted.
    """
    same = _same if exact else _same_loosely
    for name, mine, other in (
        ("conversation_history", ours.messages, theirs.messages),
        ("memory_context", ours.items, theirs.items),
    ):
        if len(mine) != len(other):
            yield f"{name}: {len(mine)} in the tables, {len(other)} in legacy"
        for place, (left, right) in enumerate(zip(mine, other, strict=False)):
            if not same(left, right):
                yield f"{name}[{place}]"
                break
    names = [*ours.fields, *(name for name in theirs.fields if name not in ours.fields)]
    differing = [
        name
        for name in names
        if (name in ours.fields) != (name in theirs.fields)
        or not same(ours.fields.get(name), theirs.fields.get(name))
    ]
    yield from (name for name in differing if name in DEFAULTS)
    unknown = sum(name not in DEFAULTS for name in differing)
    if unknown:
        yield f"unknown fields: {unknown}"
    if exact and list(ours.fields) != list(theirs.fields):
        yield "order of the fields"


def _same(ours: Any, theirs: Any) -> bool:
    return digest_of(ours) == digest_of(theirs)


def _same_loosely(ours: Any, theirs: Any) -> bool:
    # Most differ only in the order of keys: this test takes a tenth of the time of loosening both.
    return same_values(ours, theirs) or loose_digest(ours) == loose_digest(theirs)
