"""The share of a conversation never changes, and shares are spread evenly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies

from flags.sampling import share_of
from tests.support.scale import pure_examples

# A canary of yesterday must stay the canary of tomorrow.
VECTORS = {
    "": 0.8931675160897388,
    "a": 0.2537936105758485,
    "b": 0.5173761181772721,
    "conversation-1": 0.395918097636485,
    "7b9e3c1e-5b5c-4f0e-9d7e-3f1f8a3f2b11": 0.2889680643000747,
    "žluťoučký": 0.15654270248094249,
    "\udc80": 0.2554750370509591,
}


@pytest.mark.parametrize(("conversation_id", "share"), VECTORS.items())
def test_the_share_of_an_id_is_pinned(conversation_id: str, share: float) -> None:
    assert share_of(conversation_id) == share


@given(strategies.text(strategies.characters(), max_size=255))
@settings(max_examples=pure_examples(1000))
def test_a_share_is_never_1(conversation_id: str) -> None:
    assert 0 <= share_of(conversation_id) < 1


def test_a_share_of_many_is_about_that_share() -> None:
    shares = [share_of(f"conversation-{number}") for number in range(10_000)]
    for share in (0.01, 0.1, 0.5, 0.99):
        assert abs(sum(each < share for each in shares) / 10_000 - share) < 0.015
    assert len(set(shares)) == 10_000
