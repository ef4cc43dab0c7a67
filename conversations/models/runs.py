"""The tables of syncs and verifications at scale."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from conversations.models.reading import ReadingManager
from flags.installation import require_installed

require_installed()


class SyncRun(models.Model):
    """One walk over all conversations, a backfill or a verification, and its progress."""

    class State(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"
        FINISHED = "finished"
        CANCELLED = "cancelled"
        # Too many of its conversations failed.
        FAILED = "failed"

    target = models.CharField(
        max_length=16, help_text="The store that is brought up, or `verification`."
    )
    state = models.CharField(max_length=16, choices=State, default=State.RUNNING)
    stage = models.PositiveSmallIntegerField(
        default=0, help_text="The number of the current walk; a run has several."
    )
    # Keys of the rows that this stage walks over, as JSON. Rows behind `cursor` are not in a batch
    # yet. Rows added after the start of the stage are behind `upper`.
    cursor = models.TextField()
    upper = models.TextField()
    sample = models.FloatField(
        null=True, blank=True, help_text="The share of the conversations; null: all."
    )
    mark = models.TextField(
        default="", blank=True, help_text="The mark of legacy when the last full walk began."
    )
    batch_size = models.PositiveIntegerField()
    reason = models.CharField(max_length=255, blank=True, default="")
    waiting = models.CharField(
        max_length=255, blank=True, default="", help_text="Why a worker waits, as of `waited_at`."
    )
    waited_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField()
    resumed_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "sync_runs"
        verbose_name = "sync run"
        base_manager_name = "rows"
        constraints = [
            models.UniqueConstraint(
                fields=["target"],
                name="sync_run_alive",
                condition=Q(state__in=["running", "paused"]),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pk}: to {self.target}"


class SyncBatch(models.Model):
    """A range of keys that one worker walks over, in one transaction."""

    run = models.ForeignKey(
        SyncRun, on_delete=models.CASCADE, related_name="batches", db_index=False
    )
    stage = models.PositiveSmallIntegerField(default=0)
    low = models.TextField()
    high = models.TextField()
    # Rises when another worker takes the batch over: its former worker is then refused.
    generation = models.PositiveIntegerField(default=1)
    conversations = models.PositiveIntegerField(default=0)
    counts = models.TextField(
        default="{}", help_text="JSON: how often each result, without those noted."
    )
    noted = models.TextField(
        default="[]", help_text="JSON: lists of an id, its result, the reason and its class."
    )
    failed = models.PositiveIntegerField(default=0)
    taken_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "sync_batches"
        verbose_name = "sync batch"
        verbose_name_plural = "sync batches"
        base_manager_name = "rows"
        indexes = [
            # the batches of a run, and those of them that are not finished
            models.Index(fields=["run", "finished_at"], name="sync_batch_of_run"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}: {self.low} to {self.high}"
