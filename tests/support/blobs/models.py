"""A host's own tables: one row, with one JSON or text column, per conversation."""

from django.conf import settings
from django.db import models


class AssistantSession(models.Model):
    """One conversation as JSON, with a version that the host counts up."""

    session_key = models.CharField(max_length=255, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    data = models.JSONField()
    version = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.session_key


class TextSession(models.Model):
    """One conversation as text."""

    session_key = models.CharField(max_length=255, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    payload = models.TextField()

    def __str__(self) -> str:
        return self.session_key


class VersionedSession(models.Model):
    """One conversation as text, with the columns by which a host may notice a change."""

    session_key = models.CharField(max_length=255, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    payload = models.TextField()
    counter = models.PositiveIntegerField(default=0)
    changed_at = models.DateTimeField(null=True)
    stamp = models.UUIDField(null=True)
    etag = models.CharField(max_length=64, default="")

    def __str__(self) -> str:
        return self.session_key
