"""The tables of a rollout: its transitions, its live processes, and its measures.

Public for reading. `flags.transitions`, `flags.processes` and `flags.metrics` write them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models import Q

from flags.exceptions import HistoryIsFixed
from flags.installation import require_installed
from flags.phases import Phase

require_installed()


class FixedQuerySet(models.QuerySet[Any]):
    """A queryset that reads and adds rows, and refuses to change them."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise HistoryIsFixed

    update = delete = bulk_update = update_or_create = _refuse
    aupdate = adelete = abulk_update = aupdate_or_create = _refuse


FixedManager = models.Manager.from_queryset(FixedQuerySet)


class Transition(models.Model):
    """One change of the phase: its actor, time, phases and reason, and the answers of the gates.

    The primary key is the rollout's epoch: it rises with every transition.
    """

    class Kind(models.TextChoices):
        ADVANCE = "advance"
        ROLLBACK = "rollback"
        EMERGENCY = "emergency"
        RESUME = "resume"
        CANARY = "canary"
        REHEARSAL = "rehearsal"
        # A switch changed in another way: in waffle's admin, its command, or SQL.
        NOTICED = "noticed"
        # Legacy was given up, and nothing reads or writes it any more; then legacy was taken back.
        RETIRED = "retired"
        RESTORED = "restored"

    at = models.DateTimeField()
    kind = models.CharField(max_length=16, choices=Kind)
    from_phase = models.PositiveSmallIntegerField()
    to_phase = models.PositiveSmallIntegerField()
    actor = models.CharField(max_length=255, blank=True, default="")
    reason = models.TextField(blank=True, default="")
    # JSON texts: the new switch values, and the answer of each gate.
    switches = models.TextField()
    canary = models.FloatField(default=100.0, help_text="In percent of the conversations.")
    gates = models.TextField(default="[]")

    objects = FixedManager()

    class Meta:
        db_table = "rollout_transitions"
        constraints = [
            models.CheckConstraint(
                name="transition_between_phases",
                condition=Q(from_phase__lte=int(max(Phase)), to_phase__lte=int(max(Phase))),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pk}: {Phase(self.from_phase).label} to {Phase(self.to_phase).label}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Insert the record. Raises: HistoryIsFixed if it exists already."""
        if not self._state.adding:
            raise HistoryIsFixed
        # With an explicit primary key, Django would first try to update an existing record.
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise HistoryIsFixed."""
        raise HistoryIsFixed


class ReportingProcess(models.Model):
    """A process that reported itself; the row goes when the process exits or stops reporting."""

    token = models.CharField(max_length=32)
    host = models.CharField(max_length=255)
    pid = models.BigIntegerField()
    version = models.CharField(max_length=64)
    phase = models.PositiveSmallIntegerField()
    epoch = models.BigIntegerField(help_text="The latest transition that it acts on.")
    seen_at = models.DateTimeField(help_text="By the database's clock.")

    class Meta:
        db_table = "rollout_processes"
        verbose_name = "process"
        verbose_name_plural = "processes"
        constraints = [
            # a process has one row, however often it reports
            models.UniqueConstraint(fields=["token"], name="process_token"),
        ]

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class MeasuredMinute(models.Model):
    """The measures of all processes for one operation on one store in one minute."""

    began_at = models.DateTimeField()
    operation = models.CharField(max_length=32)
    store = models.CharField(max_length=32)
    count = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    fallbacks = models.BigIntegerField(default=0)
    stale = models.BigIntegerField(default=0)
    mismatches = models.BigIntegerField(default=0)
    seconds = models.FloatField(default=0.0, help_text="The sum of the durations.")
    cells = models.TextField(
        default="", help_text="JSON: counts by duration; see flags.histogram.BOUNDS."
    )

    class Meta:
        db_table = "rollout_measures"
        verbose_name = "measured minute"
        constraints = [
            # the latest minutes, and the row that a process adds to
            models.UniqueConstraint(
                fields=["began_at", "operation", "store"], name="measure_minute"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.began_at:%Y-%m-%d %H:%M} {self.operation} {self.store}"
