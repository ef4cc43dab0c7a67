"""A store that refuses the n-th statement of an operation: an error, or everything is there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction

from conversations.exceptions import StorageUnavailable
from conversations.storage import load_state, save_state
from flags.phases import Phase
from flags.switches import current_plan, forced_phase
from tests.faults.cases import BEFORE, OPERATIONS, Conversation, adds, sound
from tests.faults.injection import broken, mentions_either, mentions_tables, touches_legacy
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import message, texts
from tests.support.scale import examples, profile

STORES: dict[str, Callable[[str], bool]] = {
    "tables": mentions_tables,
    "legacy": touches_legacy,
    "both": mentions_either,
}
# What is much alike is tried in turn.
TRIED = [
    ["save_state"],
    ["append_messages", "append_messages with keys"],
    ["update_state_partial"],
    ["delete_conversation"],
    ["load_state"],
]
# No operation tried here has more statements than that.
STATEMENTS = 40
# A full run refuses every statement of every operation once, in each phase and of each store.
ROUNDS = max(1, examples(1))
BEYOND = 2
SHARE = 1.0 if profile() in ("full", "long") else 0.1


@dataclass(frozen=True)
class Case:
    """One way of failing."""

    operation: str
    before: str
    store: str
    lasting: bool
    inside: bool


def cases(
    chance: random.Random, *, operations: Sequence[str], store: str, befores: Sequence[str]
) -> Iterator[tuple[Case, int]]:
    """Yield a random case for each of the statements that there may be."""
    for at in range(1, STATEMENTS + 1):
        if chance.random() < SHARE:
            before, *flags = chance.choice(befores), *chance.choices((False, True), k=2)
            yield Case(chance.choice(operations), before, store, *flags), at


def prepared(case: Case) -> Conversation:
    made = Conversation()
    BEFORE[case.before](made)
    if case.operation == "save_state" and made.acknowledged:
        made.held = load_state(made.id)
    return made


def attempted(case: Case, made: Conversation, at: int) -> tuple[bool, list[str]]:
    """Run the operation. Returns: whether it was acknowledged, and the refused statements.

    Inside the caller's transaction the caller catches the error, and goes on.
    """
    users, name = get_user_model().objects, made.id
    done = True
    with transaction.atomic() if case.inside else nullcontext():
        if case.inside:
            users.create(username=name)
        with broken(STORES[case.store], at=at, lasting=case.lasting) as refused:
            try:
                operate(case, made)
            except StorageUnavailable:
                done = False
    kept = not case.inside or users.filter(username=name).exists()
    assert kept, f"{case}, statement {at}: the caller's own write is gone, without an error"
    return done, refused


def operate(case: Case, made: Conversation) -> None:
    if case.operation != "load_state":
        OPERATIONS[case.operation](made)
        return
    found = load_state(made.id)
    made.held = found
    stale = found.load_info is not None and found.load_info.stale
    if not stale:
        assert texts(found) == made.acknowledged, f"{case}: a load that is neither"


def tried(case: Case, at: int, later: Phase) -> bool:
    """Try one case at one statement. Returns: whether there was such a statement."""
    what = f"{case}, statement {at}, then in {later.label}"
    made = prepared(case)
    done, refused = attempted(case, made, at)
    if not refused:
        return False
    assert done or not must_be_answered(case), f"{what}: the other store would have done"
    expected = [*made.acknowledged]
    if done and made.gone:
        expected = []
    elif done and adds(case.operation, made):
        expected.append("new")
    made.acknowledged, before = expected, made.acknowledged
    what += f": {'acknowledged' if done else 'refused'}"
    made.expect(what=what)
    sound([made.id], what=what)
    with forced_phase(later):
        made.expect(what=what)
        repeat(case, made, before, done=done, what=what)
    return True


def must_be_answered(case: Case) -> bool:
    """Whether the tables do what is asked while legacy fails: they are current, and written."""
    plan = current_plan()
    return (
        case.store == "legacy"
        and case.before == "written in this phase"
        and case.operation != "delete_conversation"
        and plan.writes_legacy
        and plan.writes_normalized
    )


def repeat(case: Case, made: Conversation, before: list[str], *, done: bool, what: str) -> None:
    """Do it again without faults: what was refused is done, what can be told adds nothing."""
    if case.operation == "load_state":
        if made.held is None:
            return
        made.held.conversation_history.append(message("after"))
        save_state(made.id, made.held)
        made.acknowledged.append("after")
    elif made.gone or case.operation == "delete_conversation":
        OPERATIONS[case.operation](made)
        made.acknowledged = []
    elif not done or case.operation in ("save_state", "append_messages with keys"):
        made.acknowledged, now = before, made.acknowledged
        OPERATIONS[case.operation](made)
        made.acknowledged = now
        if not done and adds(case.operation, made):
            made.acknowledged.append("new")
    made.expect(what=f"{what}, and repeated")


def sweep(
    seed: int,
    *,
    tried_operations: Sequence[Sequence[str]] = TRIED,
    befores: Sequence[str] = tuple(BEFORE),
    rounds: int = ROUNDS,
) -> int:
    """Refuse every statement of every operation. Returns: how many were refused."""
    chance = random.Random(seed)
    refused = 0
    for operations, store in [*product(tried_operations, STORES)] * rounds:
        missed = 0
        for case, at in cases(chance, operations=operations, store=store, befores=befores):
            try:
                hit = tried(case, at, chance.choice(list(Phase)))
            except Exception as error:
                raise AssertionError(f"seed {seed}: {case}, statement {at}") from error
            refused += hit
            missed = 0 if hit else missed + 1
            # Which statements there are depends on what was there before.
            if missed == BEYOND:
                break
        else:
            assert SHARE < 1, f"{operations} have more than {STATEMENTS} statements"
    return refused


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_whichever_statement_a_store_refuses_nothing_acknowledged_is_lost(
    phase: Phase, settings: Any, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    # Chunks, or a table of the host's own.
    old = random.Random(seed).choice([OldChunks, OldSession])
    settings.CONVERSATIONS = {"LEGACY": old.settings}
    assert sweep(seed) > 0
