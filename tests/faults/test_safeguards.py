"""The proofs must fail without each of the safeguards: otherwise they would prove nothing.

What cannot be removed within a test was removed by hand: see README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connection

from conversations.content.changes import AppendMessages, save
from conversations.exceptions import StorageUnavailable
from conversations.reading import load, load_stepwise
from conversations.routing import standing, transactions
from conversations.storage import states
from conversations.writing import append, write
from conversations.writing.write import _Write
from flags.phases import Phase, StoreName
from flags.switches import forced_phase
from tests.faults import test_cancelled
from tests.faults.test_cancelled import COROUTINES, REPEATS, Gate
from tests.faults.test_connections import die_in_a_hosts_transaction, executioner
from tests.faults.test_raising import sweep
from tests.support.scale import profile

__all__ = ["executioner"]

Patch = pytest.MonkeyPatch

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        profile() not in ("full", "long"), reason="a few cases may not meet what was removed"
    ),
]


def without_savepoint(patch: Patch) -> None:
    """The legs of a write, and the tries of a load, share one transaction."""
    for module in (write, append, load, load_stepwise, standing):
        patch.setattr(module, "attempt", nullcontext)


def without_transaction(patch: Patch) -> None:
    """Every statement of a write commits on its own, unless the caller has a transaction."""
    patch.setattr("django.db.transaction.atomic", _no_transaction)


def _no_transaction(using: str | None = None, **_: Any) -> Any:
    return nullcontext()


def without_marking_behind(patch: Patch) -> None:
    """The row says that legacy took a write which it refused."""
    write_leg = _Write._write_legacy_leg

    def optimistic(self: Any, row: Any, view: Any, change: Any, *, revision: int) -> bool:
        write_leg(self, row, view, change, revision=revision)
        change.columns["legacy_revision"] = revision
        return True

    patch.setattr(_Write, "_write_legacy_leg", optimistic)


def without_keys(patch: Patch) -> None:
    """An append does not look for known keys."""
    change = AppendMessages._change

    def forgetful(self: Any, view: Any) -> Any:
        self.keys = None
        return change(self, view)

    patch.setattr(AppendMessages, "_change", forgetful)


def without_looking_at_the_baseline(patch: Patch) -> None:
    """Every baseline passes for one of what the tables show now."""
    patch.setattr(
        save,
        "_is_of",
        lambda base, view: base.store == view.store == StoreName.NORMALIZED,
    )


def without_storage_unavailable(patch: Patch) -> None:
    """A load that fails says that there is no such conversation."""
    read = states.read

    def swallowing(*args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except StorageUnavailable:
            return None

    patch.setattr(states, "read", swallowing)


@pytest.mark.parametrize(
    ("remove", "phase", "operation"),
    [
        (without_savepoint, Phase.DUAL_WRITE, "save_state"),
        (without_transaction, Phase.NEW_READS, "save_state"),
        (without_marking_behind, Phase.NEW_READS, "append_messages"),
        (without_keys, Phase.NEW_ONLY, "append_messages with keys"),
        (without_storage_unavailable, Phase.NEW_ONLY, "load_state"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_sweep_fails(
    remove: Callable[[Patch], None], phase: Phase, operation: str, monkeypatch: Patch
) -> None:
    remove(monkeypatch)
    with forced_phase(phase), pytest.raises(AssertionError) as failure:
        sweep(1, tried_operations=[[operation]], befores=["written in this phase"], rounds=20)
    # A claim that does not hold; what merely broke would prove nothing.
    assert isinstance(failure.value.__cause__, AssertionError)
    print(f"{remove.__name__}: {failure.value}: {failure.value.__cause__}")


def test_the_proof_of_the_cancelled_save_fails(monkeypatch: Patch) -> None:
    without_looking_at_the_baseline(monkeypatch)
    save, queued = COROUTINES["save_state"], REPEATS["pickled"]
    with pytest.raises(StorageUnavailable) as failure:
        test_cancelled.test_a_coroutine_cancelled_in_the_middle_raises_and_a_repeat_adds_nothing(
            save, queued, Gate(monkeypatch)
        )
    # Two messages under one key, which the database refuses.
    assert "IntegrityError" in str(failure.value)


def without_raising_the_databases_own_error(patch: Patch) -> None:
    """Inside the caller's transaction a lost connection is StorageUnavailable as well."""
    patch.setattr(transactions, "connection_lost", lambda connection, error: False)


def without_raising_when_lost(patch: Patch) -> None:
    """Any error of a leg is caught, also when the transaction is beyond repair."""
    for module in (write, append, load, load_stepwise, standing):
        patch.setattr(module, "lost", lambda using: False)


@pytest.mark.parametrize(
    "remove", [without_raising_the_databases_own_error, without_raising_when_lost]
)
def test_the_proof_of_the_hosts_transaction_fails(
    remove: Callable[[Patch], None], monkeypatch: Patch, request: pytest.FixtureRequest
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connection that could be lost")
    killer = request.getfixturevalue("executioner")
    remove(monkeypatch)
    with pytest.raises(Exception) as failure:
        die_in_a_hosts_transaction(killer, seed=1, deaths=60)
    print(f"{remove.__name__}: {failure.value}")
    connection.close()
