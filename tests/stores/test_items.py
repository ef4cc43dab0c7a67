"""Context items: their order, their rows, and what is attached to them."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from conversations.content.entries import Entry
from conversations.models import ConversationState
from conversations.storage import load_state, save_state, update_state_partial
from conversations.stores.normalized.items import set_positions
from memory.models import MemoryContextItem, MemoryMetadata
from tests.support.factories import state
from tests.support.scale import examples

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("new_only")]


def held() -> list[Any]:
    found: list[Any] = load_state("c").memory_context
    return found


def changed(items: list[Any]) -> None:
    loaded = load_state("c")
    loaded.memory_context = items
    save_state("c", loaded)
    assert held() == items


def test_items_stay_in_order_however_often_one_is_put_between_two() -> None:
    """Positions leave room for ten; then the rows of the others move, and are not written anew."""
    items: list[Any] = ["first", "last"]
    save_state("c", state(memory_context=items))
    rows = set(MemoryContextItem.objects.values_list("pk", flat=True))
    for number in range(15):
        items.insert(1, number)
        changed(items)
    assert rows <= set(MemoryContextItem.objects.values_list("pk", flat=True))
    items.insert(0, "before all")
    changed(items)
    changed([])


places = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6), st.booleans()), max_size=12)


@given(changes=places)
@settings(max_examples=examples(300))
def test_positions_rise_along_the_list_and_only_necessary_ones_change(
    changes: list[tuple[int, int, bool]],
) -> None:
    entries: list[Entry] = []
    rows = count(1)
    for at, many, remove in changes:
        at = min(at, len(entries))
        if remove:
            del entries[at : at + many]
        else:
            entries[at:at] = [Entry(b"") for _ in range(many)]
        before = {entry.row: entry.position for entry in entries if entry.row is not None}
        moved = set_positions(entries)
        after = [entry.position for entry in entries]
        assert after == sorted(set(after))
        stayed = [entry for entry in entries if entry.row is not None and entry not in moved]
        assert all(entry.position == before[entry.row] for entry in stayed)
        if moved:
            # Behind every place in use, so that no two rows share one while they move.
            assert min(after) > max(place for place in before.values() if place is not None)
        for entry in entries:
            entry.row = entry.row or next(rows)


def test_an_edit_of_a_removed_item_touches_no_other(new_only: None) -> None:
    save_state("c", state(memory_context=["x", "y"]))
    one, other = load_state("c"), load_state("c")
    other.memory_context.pop()
    save_state("c", other)
    update_state_partial("c", {"new_context_items": ["z"]})
    one.memory_context[1] = "y2"
    save_state("c", one)
    assert sorted(load_state("c").memory_context) == ["x", "y2", "z"]


def test_an_edit_finds_its_item_after_all_of_them_moved(new_only: None) -> None:
    save_state("c", state(memory_context=["x", "y"]))
    one = load_state("c")
    for number in range(12):
        other = load_state("c")
        other.memory_context.insert(1, str(number))
        save_state("c", other)
    one.memory_context[1] = "y2"
    save_state("c", one)
    found = load_state("c").memory_context
    assert (found[0], found[-1], len(found)) == ("x", "y2", 14)


def test_metadata_of_an_item_follows_its_edit_and_its_removal() -> None:
    save_state("c", state(memory_context=["a", "b"]))
    first, second = MemoryContextItem.objects.order_by("position")
    MemoryMetadata.objects.create(context_item=first, key="from", value="crm")
    MemoryMetadata.objects.create(context_item=second, key="from", value="mail")
    changed(["a, edited", "b"])
    edited = MemoryContextItem.objects.order_by("position")[0]
    assert edited.pk != first.pk
    found = MemoryMetadata.objects.values_list("context_item_id", "value")
    assert set(found) == {(edited.pk, "crm"), (second.pk, "mail")}
    changed(["b"])
    assert list(MemoryMetadata.objects.values_list("value", flat=True)) == ["mail"]
    assert ConversationState.objects.get().context_item_count == 1
