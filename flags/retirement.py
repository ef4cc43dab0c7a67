"""The end of a rollout: the record that legacy was given up, or was taken back.

The record is a transition that changes no phase. Every process reads it together with the
switches (`flags.switches.look`), so it knows within `SNAPSHOT_SECONDS`, and no
later than any flip that was made behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.db import transaction

from flags import fence, records, transitions
from flags.conf import database_alias
from flags.connections import reconnecting
from flags.exceptions import TransitionRefused
from flags.gates import GateResult
from flags.records import Kind, Record, Status
from flags.switches import snapshot


@reconnecting
def retire(
    look: Callable[[Status], Sequence[GateResult]], *, reason: str = "", actor: str = ""
) -> Record:
    """Record that legacy is given up, if the results of `look` inside the fence allow it.

    Raises: TransitionRefused (`results` says why), FenceBusy.
    """
    return _recorded(Kind.RETIRED, look, reason=reason, actor=actor)


@reconnecting
def restore(*, reason: str = "", actor: str = "") -> Record:
    """Record that legacy is in use again: the rollout may go back from then on.

    Raises: TransitionRefused when it is not retired, FenceBusy.
    """

    def look(now: Status) -> Sequence[GateResult]:
        if not now.retired:
            raise TransitionRefused("legacy is not retired: there is nothing to take back.")
        return ()

    return _recorded(Kind.RESTORED, look, reason=reason, actor=actor)


def refuse_unless_holding(results: Sequence[GateResult]) -> None:
    """Raise TransitionRefused if a condition neither holds nor is waived."""
    transitions.refuse_unless_holding(results)


def _recorded(
    kind: Kind, look: Callable[[Status], Sequence[GateResult]], *, reason: str, actor: str
) -> Record:
    transitions.not_in_a_transaction()
    with transaction.atomic(using=database_alias()):
        fence.close()
        now = records.current()
        results = look(now)
        refuse_unless_holding(results)
        made = records.record(
            kind,
            now.phase,
            now.phase,
            records.read_switches(),
            results=results,
            reason=reason,
            actor=actor,
        )
        transaction.on_commit(snapshot.clear, using=database_alias())
    return made
