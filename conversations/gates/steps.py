"""Which gates have their say in which step."""

from __future__ import annotations

from conversations.gates import installation, traffic
from conversations.gates.standing import StandingGate
from conversations.gates.verified import VerifiedGate, sync_finished
from flags import gates
from flags.phases import Phase

INTO_TABLES = frozenset({(Phase.LEGACY, Phase.DUAL_WRITE)})
INTO_READS = frozenset({(Phase.DUAL_WRITE, Phase.NEW_READS)})
ONWARDS = frozenset({(Phase.NEW_READS, Phase.NEW_PRIMARY), (Phase.NEW_PRIMARY, Phase.NEW_ONLY)})
# The end of an emergency.
RESUMED = frozenset((phase, phase) for phase in Phase)
BACK_TO_LEGACY = frozenset({(Phase.NEW_READS, Phase.DUAL_WRITE), (Phase.DUAL_WRITE, Phase.LEGACY)})
BACK = frozenset((Phase(phase), Phase(phase - 1)) for phase in range(1, len(Phase)))


def register() -> None:
    """Register the gates; called once from `ConversationsConfig.ready`."""
    for steps, name, finds in (
        (INTO_TABLES | RESUMED, "configuration", installation.configuration),
        (INTO_TABLES | RESUMED, "migrations", installation.migrations),
        (INTO_TABLES | RESUMED, "round_trip", installation.round_trip),
        (INTO_TABLES, "processes", installation.reporting),
        (INTO_READS, "rehearsed", traffic.rehearsed),
        (INTO_READS, "sync_finished", sync_finished),
        (ONWARDS, "soak", traffic.soaked),
        (ONWARDS | BACK_TO_LEGACY, "legacy_current", traffic.legacy_current),
    ):
        gates.register(StandingGate(name, steps, finds))
    for steps, name, finds in (
        (INTO_READS, "shadow_reads", traffic.shadow_reads),
        (INTO_READS, "errors", traffic.errors),
        (INTO_READS, "latency", traffic.latency),
        (INTO_READS, "foreign_writes", traffic.foreign_writes),
        (ONWARDS, "no_fallbacks", traffic.no_fallbacks),
    ):
        gates.register(StandingGate(name, steps, finds, once=True))
    gates.register(StandingGate("drill", BACK, installation.drill, rehearsals_only=True))
    gates.register(VerifiedGate(INTO_READS | ONWARDS))
