"""The breaker moves reads to a store that is current, and nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conversations.exceptions import StorageUnavailable
from conversations.storage import append_messages, load_state, save_state
from flags import breaker, metrics
from flags.breaker import REST_SECONDS, SPAN_SECONDS, Breaker
from flags.conf import Limits
from flags.health import report
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import failing, touches_messages, touches_tables
from tests.support.factories import messages, state, texts

LIMITS = Limits(minimum=4, critical=0.5)
BOTH = ("tables", "legacy")
SWAPPED = ("legacy", "tables")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaking(clock: Clock) -> Breaker:
    return Breaker(clock)


def observe(breaking: Breaker, outcomes: str, store: str = "tables") -> None:
    """Observe reads: "x" failed, "." did not."""
    for outcome in outcomes:
        breaking.observed(store, failed=outcome == "x", limits=LIMITS)


@pytest.mark.parametrize(
    ("outcomes", "opened"), [("xxx", []), ("...x", []), ("..xx", ["tables"]), ("xxxx", ["tables"])]
)
def test_it_opens_at_the_ratio_of_a_minimum_sample(
    breaking: Breaker, outcomes: str, opened: list[str]
) -> None:
    observe(breaking, outcomes)
    assert breaking.opened() == opened
    assert breaking.ordered(BOTH) == (SWAPPED if opened else BOTH)


def test_a_read_that_succeeds_opens_nothing(breaking: Breaker) -> None:
    """Else the third failure of three would open it when the fourth read succeeds."""
    observe(breaking, "xxx.")
    assert breaking.opened() == []


def test_old_outcomes_are_forgotten(breaking: Breaker, clock: Clock) -> None:
    observe(breaking, "xxx")
    clock.now += SPAN_SECONDS - 1
    observe(breaking, ".")
    clock.now += 1
    observe(breaking, "x")
    assert breaking.opened() == []
    observe(breaking, "xx")
    assert breaking.opened() == ["tables"]


def test_one_read_tries_it_after_a_while(breaking: Breaker, clock: Clock) -> None:
    observe(breaking, "xxxx")
    clock.now += REST_SECONDS - 1
    assert breaking.ordered(BOTH) == SWAPPED
    clock.now += 1
    assert [breaking.ordered(BOTH) for _ in range(3)] == [BOTH, SWAPPED, SWAPPED]
    observe(breaking, "x")
    clock.now += REST_SECONDS - 1
    assert breaking.ordered(BOTH) == SWAPPED
    clock.now += 1
    assert breaking.ordered(BOTH) == BOTH
    observe(breaking, ".")
    assert [breaking.ordered(BOTH) for _ in range(3)] == [BOTH] * 3
    observe(breaking, "xxx")
    assert breaking.opened() == [], "what was before is forgotten"


def test_a_trial_of_which_nothing_is_heard_is_followed_by_another(
    breaking: Breaker, clock: Clock
) -> None:
    observe(breaking, "xxxx")
    clock.now += REST_SECONDS
    assert breaking.ordered(BOTH) == BOTH
    clock.now += REST_SECONDS
    assert breaking.ordered(BOTH) == BOTH


def test_nothing_is_moved_to_a_store_that_fails_as_well(breaking: Breaker) -> None:
    observe(breaking, "xxxx")
    observe(breaking, "xxxx", "legacy")
    assert breaking.opened() == ["legacy", "tables"]
    assert breaking.ordered(BOTH) == BOTH
    assert breaking.ordered(SWAPPED) == SWAPPED


def test_opening_and_closing_is_logged(
    breaking: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flags"):
        observe(breaking, "..xx")
        clock.now += REST_SECONDS
        observe(breaking, ".")
    assert caplog.messages == [
        "reads of tables are moved away: 2 of 4 failed",
        "reads of tables are no longer moved away, after 30 s",
    ]


def test_threads_lose_no_count(breaking: Breaker) -> None:
    limits = Limits(minimum=4000, critical=1.0)

    def fail() -> None:
        for _ in range(999):
            breaking.observed("tables", failed=True, limits=limits)

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3):
        breaking.observed("tables", failed=True, limits=limits)
    assert breaking.opened() == []
    breaking.observed("tables", failed=True, limits=limits)
    assert breaking.opened() == ["tables"]


# In loads


@pytest.fixture
def loads(
    settings: Any, monkeypatch: pytest.MonkeyPatch, clock: Clock, db: None
) -> Iterator[Breaker]:
    """Loads in phase new_reads, with a breaker that a test may open."""
    settings.CONVERSATIONS = {
        "LEGACY": "memory_chunks",
        "READ_BREAKER": True,
        "HEALTH": {"MINIMUM": 4, "CRITICAL": 0.5},
    }
    fresh = Breaker(clock)
    monkeypatch.setattr(breaker, "reads", fresh)
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        yield fresh


def open_it(loads: Breaker) -> None:
    with failing(touches_messages):
        for _ in range(4):
            assert load_state("c").load_info.store == "legacy"
    assert loads.opened() == ["tables"]


def test_reads_are_moved_and_come_back(loads: Breaker, clock: Clock) -> None:
    assert load_state("c").load_info.store == "tables"
    open_it(loads)
    loaded = load_state("c")
    assert (loaded.load_info.store, loaded.load_info.stale, texts(loaded)) == (
        "legacy",
        False,
        ["a"],
    )
    with failing(touches_messages) as failed:
        load_state("c")
    assert failed == [], "a store that is given up is not even asked"
    assert ("reads_moved", "tables") in {(r.slug, r.about) for r in report().reasons}
    clock.now += REST_SECONDS
    assert load_state("c").load_info.store == "tables"
    assert loads.opened() == []


def test_moved_reads_are_counted_as_fallbacks(
    loads: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[Any] = []
    open_it(loads)
    monkeypatch.setattr(metrics, "observe", lambda *what, **how: observed.append((what[:2], how)))
    load_state("c")
    assert observed == [(("load", "tables"), {"fallback": True})]


def test_a_store_that_is_behind_is_never_read_because_of_it(loads: Breaker) -> None:
    open_it(loads)
    with forced_phase(Phase.NEW_ONLY):
        append_messages("c", messages("b"))
    for _ in range(6):
        loaded = load_state("c")
        assert (loaded.load_info.store, texts(loaded)) == ("tables", ["a", "b"])
    assert loads.opened() == ["tables"], "what cannot be moved says nothing"
    with failing(touches_messages), pytest.raises(StorageUnavailable):
        load_state("c")


def test_writes_are_not_touched_by_it(loads: Breaker) -> None:
    open_it(loads)
    result = append_messages("c", messages("b"))
    assert (result["stores"], result["fallback"]) == (["tables", "legacy"], False)
    assert load_state("c").load_info.store == "legacy"
    with failing(touches_tables), pytest.raises(StorageUnavailable):
        append_messages("c", messages("c"), keys=["k"])
    for _ in range(6):
        save_state("c", load_state("c"))
    assert loads.opened() == ["tables"]


def test_a_given_up_store_is_still_read_where_the_other_one_fails(
    loads: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_it(loads)
    with failing(lambda sql: "store.revision" in sql or "chunk.content" in sql):
        loaded = load_state("c")
    assert (loaded.load_info.store, texts(loaded)) == ("tables", ["a"])


def test_it_does_nothing_unless_asked_for(loads: Breaker, settings: Any) -> None:
    settings.CONVERSATIONS = {**settings.CONVERSATIONS, "READ_BREAKER": False}
    with failing(touches_messages) as failed:
        for _ in range(6):
            assert load_state("c").load_info.store == "legacy"
    # Each load asks in one statement, and then step by step.
    assert len(failed) == 2 * 6
    assert loads.opened() == []


def test_turned_off_it_moves_nothing_any_more(loads: Breaker, settings: Any) -> None:
    open_it(loads)
    settings.CONVERSATIONS = {**settings.CONVERSATIONS, "READ_BREAKER": False}
    assert load_state("c").load_info.store == "tables"


def test_a_team_without_legacy_has_nothing_to_move_to(loads: Breaker, settings: Any) -> None:
    save_state("d", state("a"))
    settings.CONVERSATIONS = {"READ_BREAKER": True, "REQUIRE_OWNER": False}
    with failing(touches_messages):
        for _ in range(20):
            with pytest.raises(StorageUnavailable):
                load_state("d")
    assert loads.opened() == []
