"""Equal digests mean equal content, type-strictly, on every Python that we support."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from conversations.content.digests import DIGEST_BYTES, EMPTY, digest_of, roll, split
from conversations.content.document import Document, field_digests, fields_digest
from tests.support.scale import pure_examples
from tests.support.strategies import values

# Stored digests are compared with new ones for ever: a change here is a data migration.
VECTORS: list[tuple[Any, str]] = [
    (None, "738096e476d3c5447c3cb95c39bfc964"),
    (True, "0583525866ce6d4c711b8d319b34a247"),
    (1, "b031f74b53286bf1b839d85af453c34a"),
    (1.0, "d55f4fd38d179736aa79c95ae474c678"),
    (-0.0, "037c7f8e41e78f7dc7b58c34ee6db80f"),
    (float("nan"), "5835f2586003803e5f1b4f9508c9dbc1"),
    (float("-inf"), "0d676778a01ebc8f2e5f9b6acedc58b2"),
    (1e22, "9afeff1ca25ec00c3600a759c988ecc4"),
    (-(2**200), "13b85a27669ce5f1e4c3c026bd50604a"),
    ("", "c00ea92c50255fd33b744f85ee9d536d"),
    ("\xe9\x00", "cc0adb7118c913f74aba5dcd1e4ee3d3"),
    ("\ud800", "f8167c723d453b017e969ffe65012827"),
    ("\U0001f600", "326de67f834214bac5f3beadf7ba458b"),
    ([], "c133a5d0196c1a9b08b909c344477bde"),
    ([1, [2, {}]], "014cf79306fad62769969af340b7cc1f"),
    ({"role": "user", "content": "Hello"}, "d5aefe61966fcbc30a3a91173d66f20b"),
    ({"b": 1, "a": [None, False]}, "23b3334c5541023ab119928109ae28c7"),
]
ROLLED = "62b2b9f45738beb20a1581105c7e171d"
EMPTY_STATE = "b0b41caa1e9dc33b169c36fb1321a69b00000000000000000000000000000000"


@pytest.mark.parametrize(("value", "expected"), VECTORS)
def test_a_digest_never_changes(value: Any, expected: str) -> None:
    assert digest_of(value).hex() == expected


def test_a_rolled_digest_never_changes() -> None:
    assert roll(EMPTY, [digest_of("a"), digest_of("b")]).hex() == ROLLED


def test_the_digest_of_an_empty_conversation_never_changes() -> None:
    document = Document.from_dict({})
    assert document.messages_digest == EMPTY
    assert document.state_digest.hex() == EMPTY_STATE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (0.0, -0.0),
        (0, None),
        ("", None),
        ("1", 1),
        ([], {}),
        ([1, [2]], [[1], 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ("\ud83d\ude00", "\U0001f600"),
        ("a", "a\x00"),
        (2**63, float(2**63)),
    ],
)
def test_values_that_python_or_json_confuse_differ(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


@given(value=values)
@settings(max_examples=pure_examples(1000))
def test_a_value_read_from_json_has_the_same_digest_each_time(value: Any) -> None:
    """Neither interned strings nor shared objects nor the bits of a NaN may show."""
    text = json.dumps(value)
    assert digest_of(json.loads(text)) == digest_of(json.loads(text))


@given(one=values, other=values)
@settings(max_examples=pure_examples(1000))
def test_values_with_different_json_texts_have_different_digests(one: Any, other: Any) -> None:
    one, other = json.loads(json.dumps(one)), json.loads(json.dumps(other))
    assert (digest_of(one) == digest_of(other)) == (json.dumps(one) == json.dumps(other))


def test_shared_objects_do_not_show() -> None:
    shared = ["x" * 50]
    assert digest_of([shared, shared]) == digest_of([["x" * 50], ["x" * 50]])


def test_a_value_that_is_no_json_has_no_digest() -> None:
    with pytest.raises(ValueError, match="unmarshallable"):
        digest_of(object())


def test_rolling_goes_on_where_it_stopped() -> None:
    digests = [digest_of(number) for number in range(5)]
    for cut in range(6):
        assert roll(roll(EMPTY, digests[:cut]), digests[cut:]) == roll(EMPTY, digests)


def test_rolling_depends_on_order_and_number() -> None:
    a, b = digest_of("a"), digest_of("b")
    assert len({roll(EMPTY, each) for each in ([], [a], [a, a], [a, b], [b, a])}) == 5


def test_joined_digests_are_split_again() -> None:
    digests = [digest_of(number) for number in range(3)]
    assert split(b"".join(digests)) == digests
    assert split(b"") == []
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}


def test_the_digest_of_fields_depends_on_their_order_and_names() -> None:
    def digest(**fields: int) -> bytes:
        return fields_digest(field_digests(fields))

    assert digest(a=1, b=2) != digest(b=2, a=1)
    assert digest(a=1) != digest(b=1)
    assert digest(a=1) != digest(a=2)


def test_a_field_that_says_nothing_has_the_digest_of_its_value() -> None:
    """What says nothing is told apart all the same: 0 from 0.0, None from an empty text."""
    values = [None, False, 0, 0.0, -0.0, "", [], {}, ()]
    digests = field_digests(dict(zip("abcdefghi", values, strict=True)))
    assert list(digests.values()) == [digest_of(value) for value in values]
    assert len(set(digests.values())) == len(values)
