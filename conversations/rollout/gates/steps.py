"""Which gates guard which step."""

from __future__ import annotations

from conversations.rollout.gates import installation, traffic
from conversations.rollout.gates.standing import StandingGate
from conversations.rollout.gates.verified import VerifiedGate, sync_finished
from flags import beginnings, gates
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
    for steps, name, finds, once in (
        (INTO_TABLES | RESUMED, "configuration", installation.configuration, True),
        (INTO_TABLES | RESUMED, "migrations", installation.migrations, True),
        (INTO_TABLES | RESUMED, "round_trip", installation.round_trip, False),
        (INTO_TABLES, "processes", installation.reporting, False),
        (INTO_READS, "rehearsed", traffic.rehearsed, False),
        (INTO_READS, "sync_finished", sync_finished, True),
        (INTO_READS, "shadow_reads", traffic.shadow_reads, True),
        (INTO_READS, "errors", traffic.errors, True),
        (INTO_READS, "latency", traffic.latency, True),
        (INTO_READS, "foreign_writes", traffic.foreign_writes, True),
        (ONWARDS, "soak", traffic.soaked, False),
        (ONWARDS, "no_fallbacks", traffic.no_fallbacks, True),
        (ONWARDS | BACK_TO_LEGACY, "legacy_current", traffic.legacy_current, False),
    ):
        gates.register(StandingGate(name, steps, finds, once=once))
    gates.register(StandingGate("drill", BACK, installation.drill, rehearsals_only=True))
    beginnings.register(installation.holds_conversations)
    gates.register(VerifiedGate(INTO_READS | ONWARDS))
