"""Changes made from an older view are carried onto what is there now: as tables, and as laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from conversations.content.alignment import opcodes
from conversations.content.digests import digest_of
from conversations.content.entries import Entry, entries_of, resequence
from conversations.content.field_merge import merge_fields
from conversations.content.merge import Rebased, locate_by_content, merge_foreign, rebase
from tests.support.scale import pure_examples


def stored(text: str, first: int = 1) -> list[Entry]:
    """Return stored entries, one for each letter."""
    return [
        Entry(digest_of(letter), letter, identity=place, row=place)
        for place, letter in enumerate(text, start=first)
    ]


def text_of(entries: list[Entry]) -> str:
    return "".join(entry.value for entry in entries)


def saved(given_: str, wanted: str, current: list[Entry], **options: Any) -> Rebased:
    """Rebase what was given as the first letters of `current`, or as they were then."""
    base = options.pop("base", None) or stored(given_)
    by_place = {entry.identity: entry for entry in current}
    return rebase(
        given=[entry.digest for entry in base],
        located=[by_place.get(entry.identity) for entry in base],
        places=[entry.identity for entry in base],
        wanted=entries_of(wanted),
        current=current,
        **options,
    )


def others(edits: dict[str, str | None], text: str, appended: str = "") -> list[Entry]:
    """Return the entries after others edited letters, removed them (None) and appended."""
    result = []
    for entry in stored(text):
        change = edits.get(entry.value, entry.value)
        if change is not None:
            result.append(Entry(digest_of(change), change, identity=entry.identity, row=entry.row))
    return result + [
        Entry(digest_of(letter), letter, identity=place, row=place)
        for place, letter in enumerate(appended, start=len(text) + 1)
    ]


@pytest.mark.parametrize(
    ("given_", "wanted", "edits", "appended", "expected"),
    [
        # nobody else wrote
        ("abc", "abc", {}, "", "abc"),
        ("abc", "abcd", {}, "", "abcd"),
        ("abc", "ab", {}, "", "ab"),
        ("abc", "", {}, "", ""),
        ("abc", "aXc", {}, "", "aXc"),
        ("abc", "Xabc", {}, "", "Xabc"),
        ("abc", "abXc", {}, "", "abXc"),
        ("", "abc", {}, "", "abc"),
        # another writer appended: both tails, in order, ours last
        ("abc", "abcX", {}, "Y", "abcYX"),
        ("abc", "abcXZ", {}, "YW", "abcYWXZ"),
        ("abc", "ab", {}, "Y", "abY"),
        ("abc", "abc", {}, "Y", "abcY"),
        ("abc", "", {}, "Y", "Y"),
        # an insertion stays behind what it stood behind
        ("abc", "aXbc", {}, "Y", "aXbcY"),
        ("abc", "Xabc", {}, "Y", "XabcY"),
        # edit against edit: the later wins
        ("abc", "aXc", {"b": "Y"}, "", "aXc"),
        # an edit wins over a removal, whichever came first
        ("abc", "aXc", {"b": None}, "", "aXc"),
        ("abc", "ac", {"b": "Y"}, "", "aYc"),
        # removed by both
        ("abc", "ac", {"b": None}, "", "ac"),
        # what others did elsewhere stays
        ("abc", "aXc", {"a": "Y"}, "Z", "YXcZ"),
        ("abc", "abcX", {"a": None}, "", "bcX"),
        # an edit of the last one, and an append behind a removed one
        ("abc", "abX", {"c": None}, "", "abX"),
        ("abc", "abcX", {"c": None}, "Y", "abYX"),
    ],
)
def test_a_save_changes_what_its_caller_changed_and_nothing_else(
    given_: str, wanted: str, edits: dict[str, str | None], appended: str, expected: str
) -> None:
    current = others(edits, given_, appended)
    assert text_of(saved(given_, wanted, current).entries) == expected


def test_an_edit_stays_at_its_place_under_its_key_and_names_what_it_replaced() -> None:
    current = stored("abc")
    current[1].key, current[1].key_digest = "k", digest_of("first")
    new = saved("abc", "aXc", current).entries[1]
    assert (new.identity, new.row, new.supersedes) == (2, None, 2)
    assert (new.key, new.key_digest) == ("k", digest_of("first"))


def test_an_edit_over_another_edit_is_reported() -> None:
    rebased = saved("abc", "aXc", others({"b": "Y"}, "abc"))
    assert [entry.value for entry in rebased.overwritten] == ["Y"]
    assert saved("abc", "aXc", stored("abc")).overwritten == []


def test_two_equal_edits_are_one() -> None:
    current = others({"b": "X"}, "abc")
    rebased = saved("abc", "aXc", current)
    assert rebased.entries == current
    assert rebased.overwritten == []


def test_a_repeated_save_recognises_its_additions() -> None:
    current = stored("abc")
    first = saved("abc", "abcX", current, token="~t").entries
    assert [(entry.key, entry.key_digest) for entry in first[3:]] == [("~t:0", digest_of("X"))]
    assert text_of(saved("abc", "abcX", first, token="~t").entries) == "abcX"


def test_a_repeated_save_with_other_content_is_an_edit() -> None:
    first = saved("abc", "abcX", stored("abc"), token="~t").entries
    first[3].row, first[3].identity = 4, 4
    again = saved("abc", "abcZ", first, token="~t").entries
    assert text_of(again) == "abcZ"
    assert (again[3].identity, again[3].supersedes) == (4, 4)


def test_a_repeated_save_does_not_undo_anothers_edit_of_what_it_added() -> None:
    first = saved("abc", "abcX", stored("abc"), token="~t").entries
    edited = Entry(digest_of("Y"), "Y", identity=4, row=5, key="~t:0", key_digest=digest_of("X"))
    assert text_of(saved("abc", "abcX", [*first[:3], edited], token="~t").entries) == "abcY"


def test_a_repeated_save_does_not_bring_back_what_was_removed_since() -> None:
    gone = {"~t:0": digest_of("X")}
    assert text_of(saved("abc", "abcX", stored("abc"), token="~t", gone=gone).entries) == "abc"


def test_a_repeated_save_recognises_its_entries_in_legacy_which_has_no_keys() -> None:
    current = stored("abcX")
    base = stored("abc")
    assert text_of(saved("abc", "abcX", current, base=base).entries) == "abcX"
    assert text_of(saved("abc", "abcXX", current, base=base).entries) == "abcXX"


def test_an_entry_equal_to_one_that_was_given_is_a_new_one() -> None:
    """Somebody says "yes" twice: the second one is no repetition of a save."""
    assert text_of(saved("ab", "abb", stored("ab")).entries) == "abb"


words = st.text("abcd", max_size=6)


@given(hidden=words, given_=words, wanted=words, appended=words)
@settings(max_examples=pure_examples(2000))
def test_no_save_loses_hidden_messages_or_those_of_others(
    hidden: str, given_: str, wanted: str, appended: str
) -> None:
    """The window of a load is the tail: what stands before and what came since stays."""
    current = stored(hidden + given_ + appended.upper())
    base = stored(given_, first=len(hidden) + 1)
    result = saved("", wanted, current, base=base, token="~t", before=len(hidden)).entries
    assert text_of([entry for entry in result if entry.value.isupper()]) == appended.upper()
    assert text_of(result[: len(hidden)]) == hidden
    rest = [entry for entry in result[len(hidden) :] if not entry.value.isupper()]
    assert text_of(rest) == wanted


@given(given_=words, wanted=words, appended=words)
@settings(max_examples=pure_examples(2000))
def test_repeating_any_save_changes_nothing(given_: str, wanted: str, appended: str) -> None:
    base = stored(given_)
    current = others({}, given_, appended.upper())
    first = saved(given_, wanted, current, base=base, token="~t").entries
    resequence(first, next_sequence=len(given_ + appended) + 1)
    # The second time, the given ones are found by following what superseded them.
    successors = {entry.supersedes: entry for entry in first if entry.supersedes is not None}
    by_row = {entry.row: entry for entry in first if entry.row is not None}
    again = rebase(
        given=[entry.digest for entry in base],
        located=[by_row.get(entry.row) or successors.get(entry.row) for entry in base],
        places=[entry.identity for entry in base],
        wanted=entries_of(wanted),
        current=first,
        token="~t",
        gone={},
    ).entries
    assert text_of(again) == text_of(first)


@given(before=words, after=words)
@settings(max_examples=pure_examples(2000))
def test_opcodes_turn_one_sequence_into_the_other(before: str, after: str) -> None:
    old, new = [digest_of(letter) for letter in before], [digest_of(letter) for letter in after]
    result, done = [], 0
    for tag, i1, i2, j1, j2 in opcodes(old, new):
        assert tag != "equal"
        result += old[done:i1] + new[j1:j2]
        done = i2
    assert result + old[done:] == new


def test_opcodes_of_an_append_are_one_insertion() -> None:
    old = [digest_of(number) for number in range(500)]
    assert list(opcodes(old, [*old, digest_of("x")])) == [("insert", 500, 500, 500, 501)]


@pytest.mark.parametrize(
    ("given_", "current", "places"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("bc", "abc", [1, 2]),
        ("aa", "aaa", [1, 2]),
        ("abc", "abX", [0, 1, None]),
        ("abc", "bc", [None, 0, 1]),
        ("abc", "aXbc", [0, 2, 3]),
        ("", "abc", []),
        ("abc", "", [None, None, None]),
    ],
)
def test_given_messages_are_found_by_content_from_the_end(
    given_: str, current: str, places: list[int | None]
) -> None:
    entries = stored(current)
    located = locate_by_content([digest_of(letter) for letter in given_], entries)
    assert [None if entry is None else entries.index(entry) for entry in located] == places


@pytest.mark.parametrize(
    ("current", "gone", "theirs", "expected", "added", "omitted"),
    [
        # old code appended
        ("abc", "", "abcX", "abcX", 1, 0),
        # it pruned, and appended
        ("abc", "", "cX", "abcX", 1, 2),
        # it saved what it read long ago
        ("abc", "", "ab", "abc", 0, 1),
        ("abc", "", "", "abc", 0, 3),
        # it inserted
        ("abc", "", "aXbc", "aXbc", 1, 0),
        # what was removed in the tables stays removed
        ("ac", "b", "abc", "ac", 0, 0),
        ("ac", "b", "abcX", "acX", 1, 0),
        # an equal text at another place is another message
        ("abc", "", "abca", "abca", 1, 0),
        # everything is new
        ("", "", "ab", "ab", 2, 0),
        ("abc", "", "xy", "abcxy", 2, 3),
    ],
)
def test_old_code_can_add_but_never_remove(
    current: str, gone: str, theirs: str, expected: str, added: int, omitted: int
) -> None:
    versions = stored("".join(sorted(current + gone)))
    kept = [entry for entry in versions if entry.value in current]
    merged = merge_foreign(versions=versions, current=kept, theirs=entries_of(theirs))
    assert (text_of(merged.entries), merged.added, merged.omitted) == (expected, added, omitted)


@given(current=words, theirs=words)
@settings(max_examples=pure_examples(2000))
def test_taking_in_a_blob_of_old_code_loses_nothing(current: str, theirs: str) -> None:
    versions = stored(current)
    merged = merge_foreign(versions=versions, current=versions, theirs=entries_of(theirs))
    rows = [entry for entry in merged.entries if entry.row is not None]
    assert rows == versions
    for letter in "abcd":
        found = text_of(merged.entries).count(letter)
        assert found >= max(current.count(letter), theirs.count(letter))


# Fields


def fields_after(
    base: dict[str, Any], current: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, Any]:
    return merge_fields(
        base={name: digest_of(value) for name, value in base.items()},
        history=(
            (len(base.get("history", [])), digest_of(base.get("history", []))),
            (len(base.get("history", [])), digest_of(base.get("history", []))),
        ),
        current=current,
        wanted=wanted,
    )


@pytest.mark.parametrize(
    ("base", "current", "wanted", "expected"),
    [
        # only we changed it; only another writer did; both did
        ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": 3}, {"a": 1}, {"a": 3}),
        ({"a": 1}, {"a": 3}, {"a": 2}, {"a": 2}),
        # 1 and 1.0 are not the same
        ({"a": 1}, {"a": 3}, {"a": 1.0}, {"a": 1.0}),
        # added and removed
        ({}, {}, {"a": 1}, {"a": 1}),
        ({}, {"b": 1}, {"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1}, {"a": 1}, {}, {}),
        ({"a": 1}, {}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {}, {"a": 2}),
        ({"a": 1}, {}, {"a": 2}, {"a": 2}),
        # the step log: two tails behind one start are both kept, ours last
        ({"history": [1]}, {"history": [1, 2]}, {"history": [1, 3]}, {"history": [1, 2, 3]}),
        ({"history": [1]}, {"history": [1]}, {"history": [1, 3]}, {"history": [1, 3]}),
        ({"history": [1]}, {"history": [1, 2]}, {"history": [1]}, {"history": [1, 2]}),
        # our tail is there already: the save is repeated
        ({"history": [1]}, {"history": [1, 3, 4]}, {"history": [1, 3]}, {"history": [1, 3, 4]}),
        # what was rewritten keeps what others added
        ({"history": [1]}, {"history": [1, 2]}, {"history": [9]}, {"history": [9, 2]}),
        ({"history": [1]}, {"history": [9, 2]}, {"history": [1, 3]}, {"history": [9, 2, 3]}),
    ],
)
def test_fields_that_the_caller_changed_are_the_callers(
    base: dict[str, Any], current: dict[str, Any], wanted: dict[str, Any], expected: dict[str, Any]
) -> None:
    merged = fields_after(base, current, wanted)
    assert merged == expected
    assert digest_of(merged) == digest_of(expected)


# Sequences


@pytest.mark.parametrize(
    ("identities", "expected", "following"),
    [
        ([], [], 10),
        ([1, 2, 3], [1, 2, 3], 10),
        ([1, 2, None], [1, 2, 10], 11),
        ([1, 5, None, None], [1, 5, 10, 11], 12),
        ([1, None, 3], [1, 10, 11], 12),
        ([3, 1], [3, 10], 11),
    ],
)
def test_sequences_rise_and_are_never_used_twice(
    identities: list[int | None], expected: list[int], following: int
) -> None:
    entries = [Entry(digest_of(n), n, identity=i, row=i) for n, i in enumerate(identities)]
    assert resequence(entries, next_sequence=10) == following
    assert [entry.identity for entry in entries] == expected


def test_a_moved_message_names_the_version_it_replaces() -> None:
    entries = [Entry(digest_of("new"), "new"), *stored("ab")]
    resequence(entries, next_sequence=10)
    assert [(entry.row, entry.supersedes) for entry in entries] == [
        (None, None),
        (None, 1),
        (None, 2),
    ]


def test_an_entry_without_a_place_or_a_row_says_so() -> None:
    entry = Entry(digest_of("a"), "a")
    with pytest.raises(ValueError, match="no place yet"):
        _ = entry.place
    with pytest.raises(ValueError, match="not stored yet"):
        _ = entry.stored_row


@pytest.mark.parametrize(
    ("given_", "current", "wanted", "expected"),
    [
        ([1], [1], [1, 2], [1, 2]),
        ([1], [1, 2], [1, 3], [1, 2, 3]),
        # The same save again, alone or after others went on.
        ([1], [1, 2], [1, 2], [1, 2]),
        ([1], [1, 2, 3], [1, 2], [1, 2, 3]),
        # The same save again, after an unknown outcome, with one step more.
        ([], ["a"], ["a", "b"], ["a", "b"]),
        ([1], [1, 2], [1, 2, 3], [1, 2, 3]),
        ([1], [1, 9, 2], [1, 2, 3], [1, 9, 2, 3]),
        ([1], [1, 9, 2, 8], [1, 2], [1, 9, 2, 8]),
        # A step log may be cut; what others added to it stays.
        ([1, 2, 3], [1, 2, 3], [3], [3]),
        ([1, 2, 3], [1, 2, 3], [], []),
        ([1, 2, 3], [1, 2, 3, 4], [3], [3, 4]),
        ([1, 2, 3], [3], [3], [3]),
        # 1.0 is not 1.
        ([1], [1, 2], [1, 2.0], [1, 2, 2.0]),
    ],
)
def test_step_logs_are_merged(
    given_: list[Any], current: list[Any], wanted: list[Any], expected: list[Any]
) -> None:
    merged = fields_after({"history": given_}, {"history": current}, {"history": wanted})
    assert repr(merged["history"]) == repr(expected)
