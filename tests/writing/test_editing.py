"""What edits of single messages read does not grow with the conversation; nor does work squared."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from django.db.backends.utils import CursorWrapper
from hypothesis import given, settings, strategies as st

from conversations.content.alignment import matched, opcodes
from conversations.content.digests import BLOCK, EMPTY, Blocks, digest_of, roll
from conversations.exceptions import MessageNotFound
from conversations.models import ConversationState
from conversations.rollout import verification
from conversations.storage import (
    append_messages,
    list_messages,
    load_state,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
)
from conversations.stores.normalized import blocks_of
from tests.storage.test_statements import statements
from tests.support.factories import message, messages, texts
from tests.support.scale import pure_examples

pytestmark = pytest.mark.django_db
SHORT, LONG = 500, 16_000


class Fetched:
    """Counts the rows that cursors hand out."""

    rows = 0

    def one(self, cursor: Any) -> Any:
        found = cursor.cursor.fetchone()
        self.rows += found is not None
        return found

    def many(self, cursor: Any, *args: Any) -> Any:
        found = cursor.cursor.fetchmany(*args)
        self.rows += len(found)
        return found

    def all(self, cursor: Any) -> Any:
        found = cursor.cursor.fetchall()
        self.rows += len(found)
        return found


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    counted = Fetched()
    for name, count in (
        ("fetchone", counted.one),
        ("fetchmany", counted.many),
        ("fetchall", counted.all),
    ):
        # Of the class, so that only fetches past Django are not counted.
        monkeypatch.setattr(CursorWrapper, name, count_by(count), raising=False)
    return counted


def count_by(count: Callable[..., Any]) -> Callable[..., Any]:
    return lambda cursor, *args: count(cursor, *args)


def long_conversation(count: int) -> str:
    name = str(uuid.uuid4())
    keys = [f"k{number}" for number in range(1, count + 1)]
    append_messages(name, messages(*range(count)), keys=keys, create=True)
    return name


EDITS: dict[str, Callable[[str, int], Any]] = {
    "replace by sequence": lambda name, at: replace_message(name, at, message("x")),
    "replace by key": lambda name, at: replace_message(name, f"k{at}", message("y")),
    "remove by sequence": lambda name, at: remove_messages(name, [at, at + 1]),
    "remove by key": lambda name, at: remove_messages(name, [f"k{at}", f"k{at + 1}"]),
    "remove the last": lambda name, at: remove_messages(name, last=2),
    "restore by sequence": lambda name, at: restore_message(name, at),
    "restore by key": lambda name, at: restore_message(name, f"k{at}"),
}


@pytest.fixture
def of_both_lengths(new_only: None) -> list[tuple[str, int]]:
    return [(long_conversation(count), count) for count in (SHORT, LONG)]


def test_an_edit_reads_and_says_as_much_in_a_long_conversation_as_in_a_short_one(
    of_both_lengths: list[tuple[str, int]], fetched: Fetched
) -> None:
    costs: dict[str, list[Any]] = {}
    for name, count in of_both_lengths:
        middle = count // 2
        for at in (1, middle):
            for edit, call in EDITS.items():
                if edit.startswith("restore"):
                    # One is removed, one was edited.
                    remove_messages(name, [at] if "sequence" in edit else [f"k{at}"])
                fetched.rows = 0
                sent = statements(lambda: call(name, at))  # noqa: B023
                kinds = [sql.split(" ", 1)[0] for sql in sent]
                costs.setdefault(f"{edit} at {'1' if at == 1 else 'middle'}", []).append(
                    (kinds, fetched.rows)
                )
                if edit.startswith("remove by"):
                    restore_message(name, at)
                    restore_message(name, at + 1)
    assert {edit: found for edit, found in costs.items() if found[0] != found[1]} == {}
    assert max(rows for found in costs.values() for _, rows in found) <= 10
    assert max(len(kinds) for found in costs.values() for kinds, _ in found) <= 8
    replaced = costs["replace by key at middle"][0]
    kinds = ["SELECT", "SELECT", "UPDATE", "INSERT", "SELECT", "UPDATE"]
    assert replaced[0] == kinds
    for name, _ in of_both_lengths:
        assert [found.kinds for found in verification.verify([name])] == [IN_TABLES]


IN_TABLES = (verification.Kind.TABLES_ONLY,)


def test_an_edit_of_a_conversation_of_the_older_form_brings_it_into_the_newer(
    new_only: None, fetched: Fetched
) -> None:
    name = long_conversation(600)
    rows = ConversationState.rows.filter(conversation_id=name)
    rolled = roll(EMPTY, [digest_of(each) for each in messages(*range(600))])
    rows.update(messages_digest=rolled, message_blocks=None)
    append_messages(name, messages("a"))
    append_messages(name, messages(*range(100)))
    loaded = load_state(name)
    loaded.conversation_history += messages("b")
    save_state(name, loaded)
    said = [*messages(*range(600)), *messages("a", *range(100), "b")]
    row = rows.get()
    expected = roll(EMPTY, [digest_of(each) for each in said])
    assert (bytes(row.messages_digest), row.message_blocks) == (expected, None)
    assert [found.kinds for found in verification.verify([name])] == [IN_TABLES]
    replace_message(name, 3, message("edited"))
    assert blocks_of(rows.get()).closed not in (None, b"")
    fetched.rows = 0
    replace_message(name, 4, message("edited"))
    assert fetched.rows < 10
    assert load_state(name).conversation_history[2:4] == messages("edited", "edited")
    assert [found.kinds for found in verification.verify([name])] == [IN_TABLES]


@pytest.mark.parametrize("spoiled", [{"message_blocks": b"x" * 32}, {"messages_digest": b"y" * 32}])
def test_a_verification_finds_blocks_that_lie(new_only: None, spoiled: dict[str, Any]) -> None:
    name = long_conversation(600)
    ConversationState.rows.filter(conversation_id=name).update(**spoiled)
    (found,) = verification.verify([name])
    assert found.places == ("messages_digest",)


@pytest.mark.parametrize("size", [1, 3, 16, 17, 64, 300])
def test_appends_over_the_end_of_a_block_are_digested_as_all_at_once(
    new_only: None, size: int
) -> None:
    name = long_conversation(BLOCK - 1)
    while list_messages(name, limit=1).last < BLOCK + 2:
        append_messages(name, messages(*range(size)))
    said = load_state(name).conversation_history
    row = ConversationState.rows.get(conversation_id=name)
    places = [(place, digest_of(each)) for place, each in enumerate(said, start=1)]
    assert blocks_of(row) == Blocks.of(places, next_sequence=len(said) + 1)
    assert bytes(row.messages_digest) == blocks_of(row).digest
    assert [found.kinds for found in verification.verify([name])] == [IN_TABLES]


def test_saves_over_the_end_of_a_block_are_digested_as_all_at_once(new_only: None) -> None:
    name = long_conversation(BLOCK - 2)
    for step in range(4):
        loaded = load_state(name, max_messages=2)
        loaded.conversation_history += messages(f"step {step}")
        save_state(name, loaded)
    loaded = load_state(name)
    loaded.conversation_history[3] = message("edited")
    loaded.conversation_history.insert(100, message("inserted"))
    save_state(name, loaded)
    assert [found.kinds for found in verification.verify([name])] == [IN_TABLES]


@given(count=st.integers(0, 3 * BLOCK), cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=4))
@settings(max_examples=pure_examples(100), deadline=None)
def test_blocks_are_the_same_however_messages_came(count: int, cuts: list[int]) -> None:
    digests = [digest_of(number) for number in range(count)]
    blocks, start = Blocks(), 0
    for end in [*sorted(min(cut, count) for cut in cuts), count]:
        blocks = blocks.appended(digests[start:end], next_sequence=start + 1)
        start = end
    whole = Blocks.of(enumerate(digests, start=1), next_sequence=count + 1)
    assert blocks == whole
    assert len(whole.closed or b"") == count // BLOCK * 16


def test_the_digest_of_blocks_never_changes_and_depends_on_order_and_place() -> None:
    digests = [digest_of(number) for number in range(600)]
    whole = Blocks.of(enumerate(digests, start=1), next_sequence=601)
    assert whole.digest.hex() == BLOCKS
    swapped = [digests[1], digests[0], *digests[2:]]
    others = [
        Blocks.of(enumerate(swapped, start=1), next_sequence=601),
        Blocks.of(enumerate(digests[:-1], start=1), next_sequence=601),
        Blocks.of(enumerate(digests[1:], start=2), next_sequence=601),
    ]
    assert len({whole.digest, *(each.digest for each in others)}) == 4
    few = Blocks.of(enumerate(digests[:255], start=1), next_sequence=256)
    assert few.digest == roll(EMPTY, digests[:255])


BLOCKS = "30f538735eae85e6a4956146cb347642f9ec3c479b0813316375301e233d9748"


# Single messages


def test_messages_are_removed_by_many_keys_and_sequences_at_once(phase: Any) -> None:
    append_messages("c", messages(*range(2500)), keys=[f"k{n}" for n in range(2500)], create=True)
    references = [*(f"k{n}" for n in range(0, 2000, 2)), *range(2, 2001, 2), "k1"]
    assert texts_of(remove_messages("c", references)) == list(range(2000))
    assert texts(load_state("c")) == list(range(2000, 2500))
    with pytest.raises(MessageNotFound, match="'k1'"):
        remove_messages("c", ["k2300", "k1"])


def texts_of(found: list[Any]) -> list[Any]:
    return [each["content"] for each in found]


# Work that grew with the square


def test_long_lists_are_aligned_in_about_linear_time() -> None:
    """Each of these took minutes at this length."""
    unique = [digest_of(number) for number in range(20_000)]
    same = [digest_of("ok")] * 20_000
    begun = time.process_time()
    assert len(matched(unique, unique[::2])) == 10_000
    assert len(matched([*unique[::-1]], unique)) >= 1
    assert len(matched([b"a", *same, b"b"], [b"c", *same[:-5], b"d"])) == 19_995
    mixed = [each for pair in zip(unique, same, strict=True) for each in pair]
    assert len(matched(mixed, mixed[2::3])) > 10_000
    assert time.process_time() - begun < 20


@given(
    before=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=40),
    after=st.lists(st.sampled_from([b"a", b"b", b"c", b"e"]), max_size=40),
    compared=st.sampled_from([0, 20, 2**14]),
)
@settings(max_examples=pure_examples(300), deadline=None)
def test_alignment_is_the_same_kind_of_answer_however_little_difflib_does(
    before: list[bytes], after: list[bytes], compared: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("conversations.content.alignment.COMPARED", compared)
        pairs, changes = matched(before, after), list(opcodes(before, after))
    assert all(before[i] == after[j] for i, j in pairs)
    assert all(one < other and i < j for (one, i), (other, j) in pairwise(pairs))
    made = list(before)
    for _, i1, i2, j1, j2 in reversed(changes):
        made[i1:i2] = after[j1:j2]
    assert made == after


def test_a_save_that_drops_every_second_of_many_messages_is_no_square(new_only: None) -> None:
    name = long_conversation(6000)
    loaded = load_state(name)
    del loaded.conversation_history[::2]
    loaded.conversation_history[100] = message("edited")
    begun = time.process_time()
    save_state(name, loaded)
    assert time.process_time() - begun < 20
    assert len(load_state(name).conversation_history) == 3000
