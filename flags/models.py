"""The record of every transition of the rollout. Public for reading; `flags.transitions` writes."""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models import Q

from flags.exceptions import HistoryIsFixed
from flags.phases import Phase


class FixedQuerySet(models.QuerySet[Any]):
    """A queryset that reads and adds, and changes nothing."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise HistoryIsFixed

    update = delete = bulk_update = update_or_create = _refuse
    aupdate = adelete = abulk_update = aupdate_or_create = _refuse


FixedManager = models.Manager.from_queryset(FixedQuerySet)


class Transition(models.Model):
    """One change of the phase: who, when, from where to where, why, and what the gates said.

    The primary key is the rollout's epoch: it rises with every transition.
    """

    class Kind(models.TextChoices):
        ADVANCE = "advance"
        ROLLBACK = "rollback"
        EMERGENCY = "emergency"
        RESUME = "resume"
        CANARY = "canary"
        REHEARSAL = "rehearsal"
        # Somebody changed a switch without us: in waffle's admin, its command, or SQL.
        NOTICED = "noticed"

    at = models.DateTimeField()
    kind = models.CharField(max_length=16, choices=Kind)
    from_phase = models.PositiveSmallIntegerField()
    to_phase = models.PositiveSmallIntegerField()
    actor = models.CharField(max_length=255, blank=True, default="")
    reason = models.TextField(blank=True, default="")
    # JSON texts: the switch values from then on, and what each gate said.
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
        """Insert the record. Raises: HistoryIsFixed when it is there already."""
        if not self._state.adding:
            raise HistoryIsFixed
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise HistoryIsFixed."""
        raise HistoryIsFixed
