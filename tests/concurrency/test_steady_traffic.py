"""A step is made at the first try while saves go on: what changed since is verified before."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from conversations import storage
from conversations.models import ConversationState
from conversations.rollout.gates import verified
from conversations.rollout.sync import runs as syncs
from conversations.rollout.verification import runs as verifications, unverified
from flags import transitions
from flags.exceptions import TransitionRefused
from flags.gates import GateResult
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from memory.models import MemoryChunk, MemoryMetadata
from tests.concurrency.writers import message
from tests.flags.test_fence import until_true
from tests.flags.test_switches import set_rows
from tests.machine.oldcode import OldSession
from tests.support.blobs.models import TextSession
from tests.support.factories import messages, state
from tests.support.processes import Job, result_of, start
from tests.support.rollout import EASED, before_the_fence, prepare
from tests.support.scale import examples

pytestmark = pytest.mark.django_db(transaction=True)

CONVERSATIONS = 5_000
A_SECOND = 50
STORES: dict[str, Any] = {"memory_chunks": "memory_chunks", "session": OldSession.settings}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, settings: Any) -> str:
    settings.CONVERSATIONS = {"LEGACY": STORES[request.param], **EASED}
    return str(request.param)


def in_both(store: str, count: int) -> list[str]:
    """Let old code have written conversations, take them in, and verify them all."""
    names = [f"c{number}" for number in range(count)]
    text = json.dumps(state("a", "b").to_dict())
    if store == "session":
        TextSession.objects.bulk_create(
            [TextSession(session_key=name, payload=text) for name in names]
        )
    else:
        long_ago = timezone.now() - timedelta(days=1)
        chunks = MemoryChunk.objects.bulk_create(
            [MemoryChunk(content=text, created_at=long_ago) for _ in names]
        )
        MemoryMetadata.objects.bulk_create(
            [
                MemoryMetadata(chunk=chunk, key=key, value=value)
                for chunk, name in zip(chunks, names, strict=True)
                for key, value in (("conversation_id", name), ("type", "state"))
            ]
        )
    list(syncs.work(syncs.begin("tables")))
    list(verifications.work(verifications.begin()))
    assert unverified().count() == 0
    return names


def save_steadily(legacy: Any, names: list[str], until: str, began: str, a_second: float) -> float:
    """Save so many times a second until a file exists. Returns: how often a second it was."""
    with override_settings(CONVERSATIONS={"LEGACY": legacy, **EASED}):
        return _save_steadily(names, until, began, a_second)


def _save_steadily(names: list[str], until: str, began: str, a_second: float) -> float:
    chance, pause = random.Random(1), threading.Event()
    first, number = time.monotonic(), 0
    while not Path(until).exists():
        storage.append_messages(chance.choice(names), [message(f"m{number}")])
        number += 1
        if number == 20:
            Path(began).touch()
        # Sleeps only while it is ahead.
        pause.wait(max(0.0, first + number / a_second - time.monotonic()))
    return number / (time.monotonic() - first)


@contextmanager
def traffic(store: str, names: list[str], folder: Path) -> Iterator[list[float]]:
    """Let two processes save `A_SECOND` times a second together. Gives: how often it was."""
    done = folder / "done"
    writers = []
    for number in range(2):
        arguments = {
            "legacy": STORES[store],
            "names": names,
            "until": str(done),
            "began": str(folder / f"began{number}"),
            "a_second": A_SECOND / 2,
        }
        job = Job("tests.concurrency.test_steady_traffic:save_steadily", arguments)
        writers.append(start(job))
    rate: list[float] = []
    try:
        until_true(lambda: all((folder / f"began{number}").exists() for number in range(2)))
        yield rate
        done.touch()
        rate.append(sum(result_of(writer) for writer in writers))
    finally:
        done.touch()
        for writer in writers:
            if writer.poll() is None:
                writer.kill()
                writer.wait()


@pytest.mark.long
def test_a_step_is_made_at_the_first_try_under_steady_traffic(
    store: str, tmp_path: Path, record_property: Any
) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    names = in_both(store, examples(CONVERSATIONS))
    prepare()
    with traffic(store, names, tmp_path) as rate:
        began = time.monotonic()
        made = transitions.advance()
        record_property("seconds", time.monotonic() - began)
    assert made.target == Phase.NEW_READS
    record_property("saves a second", rate[0])
    (gate,) = (one for one in made.gates if one["gate"] == "verified")
    assert gate["passed"]
    # Nothing that was saved meanwhile was forgotten.
    saved = ConversationState.rows.filter(revision__gt=1).count()
    assert saved > 0
    assert all(
        found.in_order for batch in verifications.work(verifications.begin()) for found in batch
    )


# Rounds


def look() -> GateResult:
    (found,) = (one for one in transitions.check() if one.gate == "verified")
    return found


def test_writes_of_one_round_are_verified_in_the_next(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    names = in_both(store, 12)
    monkeypatch.setattr(verified, "LITTLE", timedelta(seconds=-1))
    whole, rounds = verified.verify, []

    def verify(ids: Any) -> Any:
        rounds.append(sorted(ids))
        yield from whole(ids)
        with forced_phase(Phase.DUAL_WRITE):
            for name in names[: 12 - 4 * len(rounds)]:
                storage.append_messages(name, messages("meanwhile"))

    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages("c0", messages("before"))
    monkeypatch.setattr(verified, "verify", verify)
    assert look().passed
    expected = [["c0"], sorted(names[:8]), sorted(names[:4])]
    assert rounds == expected


def test_a_round_that_was_quick_is_the_last(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    in_both(store, 3)
    monkeypatch.setattr(verified, "LITTLE", timedelta(hours=1))
    looks: list[int] = []
    whole = verified.out_of_step
    monkeypatch.setattr(verified, "out_of_step", lambda: looks.append(1) or whole())
    monkeypatch.setattr(verified, "changed_since", lambda mark: looks.append(2) or iter(()))
    assert look().passed
    assert looks == [1]


def test_traffic_that_never_rests_ends_after_some_rounds(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    in_both(store, 3)
    monkeypatch.setattr(verified, "LITTLE", timedelta(seconds=-1))
    whole, rounds = verified.changed_since, []

    def changed_since(mark: str) -> Any:
        rounds.append(mark)
        with forced_phase(Phase.DUAL_WRITE):
            storage.append_messages("c1", messages("again"))
        return whole(mark)

    monkeypatch.setattr(verified, "changed_since", changed_since)
    assert look().passed
    assert len(rounds) == verified.MOST_ROUNDS


def test_our_own_writes_are_not_verified_twice(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's table that keeps no time names everything as written since."""
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    in_both(store, 4)
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages("c2", messages("more"))
    looked: list[str] = []
    whole = verified.verify

    def verify(ids: Any) -> Any:
        looked.extend(ids)
        return whole(ids)

    monkeypatch.setattr(verified, "verify", verify)
    prepare()
    assert transitions.advance().target == Phase.NEW_READS
    assert looked == ["c2"]


# What is refused


def test_too_many_writes_inside_the_fence_are_counted_with_the_time_to_wait(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    names = in_both(store, 6)
    prepare()
    monkeypatch.setattr(verified, "INSIDE", timedelta(0))

    def act() -> None:
        with forced_phase(Phase.DUAL_WRITE):
            for name in names[:4]:
                storage.append_messages(name, messages("late"))

    before_the_fence(act, monkeypatch)
    with pytest.raises(TransitionRefused) as refused:
        transitions.advance()
    (gate,) = (one for one in refused.value.results if one.gate == "verified")
    assert gate.message.startswith("more has to be verified than 0 s are enough for: of 4 conv")
    assert "are left, which takes about " in gate.message
    assert "ask again" in gate.fix
    monkeypatch.setattr(verified, "INSIDE", timedelta(minutes=1))
    assert transitions.advance().target == Phase.NEW_READS


def test_too_many_writes_before_the_fence_are_counted_with_the_time_they_take(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    names = in_both(store, 6)
    with forced_phase(Phase.DUAL_WRITE):
        for name in names[:5]:
            storage.append_messages(name, messages("late"))
    monkeypatch.setattr(verified, "BEFORE", timedelta(0))
    found = look()
    assert not found.passed
    assert found.message.startswith("more has to be verified than 0 s are enough for: ")
    assert "conversations are left after 1 rounds, which takes about " in found.message
    assert "conversations verify" in found.fix
