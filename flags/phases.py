"""The phases of a rollout, and the stores that each reads and writes. No database, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from flags.texts import quoted


class Switch(StrEnum):
    """The waffle switches of a rollout."""

    USE_NEW_STORAGE = "use_new_storage"
    USE_NEW_SAVE = "use_new_save"
    USE_NEW_LOAD = "use_new_load"
    PARALLEL_MODE = "parallel_mode"
    EMERGENCY_ROLLBACK = "emergency_rollback"
    PERFORMANCE_MONITORING = "performance_monitoring"


# The waffle sample with the percentage of the conversations for which the phase is in force. The
# rest is one phase lower. Waffle draws lots for a sample; we use a hash, see flags.sampling.
CANARY = "rollout_canary"
EVERYTHING = 100.0

# The four switches that spell a phase; emergency_rollback overrules them all.
ROUTING = (
    Switch.USE_NEW_STORAGE,
    Switch.USE_NEW_SAVE,
    Switch.USE_NEW_LOAD,
    Switch.PARALLEL_MODE,
)

HELP_TEXTS: Mapping[Switch, str] = {
    Switch.USE_NEW_STORAGE: "The tables are the primary store (phases new_primary and new_only).",
    Switch.USE_NEW_SAVE: "Saves write the tables (every phase but legacy).",
    Switch.USE_NEW_LOAD: "Loads read the tables (phases new_reads, new_primary and new_only).",
    Switch.PARALLEL_MODE: (
        "Saves write legacy beside the tables (every phase but legacy and new_only)."
    ),
    Switch.EMERGENCY_ROLLBACK: (
        "Legacy alone is written and preferred for reading. It overrules the other switches."
    ),
    Switch.PERFORMANCE_MONITORING: (
        "Processes report themselves, operations are counted and timed, and some loads are"
        " compared with the other store. Changes no routing."
    ),
}


class StoreName(StrEnum):
    """The two stores of a rollout."""

    LEGACY = "legacy"
    NORMALIZED = "tables"


class Phase(IntEnum):
    """The steps of a rollout, in order; a team moves one step at a time, either way."""

    LEGACY = 0
    DUAL_WRITE = 1
    NEW_READS = 2
    NEW_PRIMARY = 3
    NEW_ONLY = 4

    @classmethod
    def _missing_(cls, value: object) -> None:
        """Refuse a value that is no phase, with the value shortened."""
        raise ValueError(f"{quoted(value)} is no phase: 0 to {len(cls) - 1}")

    @property
    def label(self) -> str:
        """Return the name that operators use, such as `dual_write`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Plan:
    """The stores that one operation writes and reads in a phase.

    `reads` and `decides` are preferences: the truth of each conversation may overrule them.
    """

    phase: Phase
    writes_legacy: bool
    writes_normalized: bool
    reads: StoreName
    decides: StoreName
    mixed: bool = False
    emergency: bool = False


PLANS: Mapping[Phase, Plan] = {
    Phase.LEGACY: Plan(Phase.LEGACY, True, False, StoreName.LEGACY, StoreName.LEGACY),
    Phase.DUAL_WRITE: Plan(Phase.DUAL_WRITE, True, True, StoreName.LEGACY, StoreName.LEGACY),
    Phase.NEW_READS: Plan(Phase.NEW_READS, True, True, StoreName.NORMALIZED, StoreName.NORMALIZED),
    Phase.NEW_PRIMARY: Plan(
        Phase.NEW_PRIMARY, True, True, StoreName.NORMALIZED, StoreName.NORMALIZED
    ),
    Phase.NEW_ONLY: Plan(Phase.NEW_ONLY, False, True, StoreName.NORMALIZED, StoreName.NORMALIZED),
}

# As in phase legacy, but the tables may hang, so operations wait for them only briefly.
EMERGENCY = replace(PLANS[Phase.LEGACY], emergency=True)

# Bits in the order of ROUTING: storage, save, load, parallel.
SWITCHES_OF: Mapping[Phase, tuple[bool, bool, bool, bool]] = {
    Phase.LEGACY: (False, False, False, False),
    Phase.DUAL_WRITE: (False, True, False, True),
    Phase.NEW_READS: (False, True, True, True),
    Phase.NEW_PRIMARY: (True, True, True, True),
    Phase.NEW_ONLY: (True, True, True, False),
}


def phase_of(switches: Mapping[str, bool]) -> Phase:
    """Return the phase that a combination of the four switches means.

    Source: docs/design.md, section 4. A combination outside `SWITCHES_OF` means a phase that
    writes at least as much, so that a half-flipped rollout never writes less than intended.
    """
    storage, save, load, parallel = (bool(switches.get(switch, False)) for switch in ROUTING)
    if load and parallel:
        return Phase.NEW_PRIMARY if storage else Phase.NEW_READS
    if load:
        return Phase.NEW_ONLY if storage and save else Phase.NEW_READS
    return Phase.DUAL_WRITE if storage or save or parallel else Phase.LEGACY


def lowered(plan: Plan) -> Plan:
    """Return the plan of the phase before, for the conversations outside a canary."""
    return PLANS[Phase(max(plan.phase - 1, 0))]


def plan_of(switches: Mapping[str, bool]) -> Plan:
    """Return the plan of a combination of switches; `mixed` if no phase is spelled that way."""
    if switches.get(Switch.EMERGENCY_ROLLBACK, False):
        return EMERGENCY
    plan = PLANS[phase_of(switches)]
    spelled = tuple(bool(switches.get(switch, False)) for switch in ROUTING)
    return plan if spelled == SWITCHES_OF[plan.phase] else replace(plan, mixed=True)


def switches_for(phase: Phase) -> dict[str, bool]:
    """Return the values of the routing switches that spell a phase."""
    return {switch.value: on for switch, on in zip(ROUTING, SWITCHES_OF[Phase(phase)], strict=True)}
