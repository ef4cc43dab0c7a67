"""Which stores an operation writes, and in which order it reads them. Pure.

The plan of the phase is a preference; the truth of the conversation overrules it.
"""

from __future__ import annotations

from conversations.truth import Truth
from flags.phases import PLANS, Phase, Plan, StoreName
from flags.switches import current_plan


def plan_for(conversation_id: str, *, has_legacy: bool) -> Plan:
    """Return the plan in force. A team without a legacy store is always in new_only."""
    return current_plan(conversation_id) if has_legacy else PLANS[Phase.NEW_ONLY]


def read_order(plan: Plan, truth: Truth) -> tuple[StoreName, ...]:
    """Return the stores that may answer a load, best first: only those that are current."""
    if truth == Truth.BOTH:
        other = next(name for name in StoreName if name != plan.reads)
        return (plan.reads, other)
    if truth == Truth.LEGACY:
        return (StoreName.LEGACY,)
    return (StoreName.NORMALIZED,)


def may_write_legacy_blindly(plan: Plan) -> bool:
    """Whether a save may go to legacy when the conversation's row cannot be read.

    In the phases in which legacy decides, trouble with the tables must not stop a save. Its
    blob carries no mark, so it is merged as old code's would be.
    """
    return plan.decides == StoreName.LEGACY
