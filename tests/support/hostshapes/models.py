"""The tables of such hosts, one for each shape."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


class Assistant(models.Model):
    """What users chat with."""

    name = models.CharField(max_length=64)

    def __str__(self) -> str:
        return self.name


class Session(models.Model):
    """A session with a UUID primary key and a JSON column, always a user's."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    title = models.CharField(max_length=200, blank=True)
    data = models.JSONField(default=dict)
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return str(self.id)


class Chat(models.Model):
    """A numbered chat of an assistant, its messages as text."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    assistant = models.ForeignKey(Assistant, on_delete=models.CASCADE)
    payload = models.TextField(default="")

    def __str__(self) -> str:
        return str(self.pk)


class History(models.Model):
    """A row of `user` and `history`: one chat per user, as a list."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    history = models.JSONField(default=list)

    def __str__(self) -> str:
        return str(self.user_id)


class Thread(models.Model):
    """A chat per user and assistant."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    assistant = models.ForeignKey(Assistant, on_delete=models.CASCADE)
    state = models.JSONField(default=dict)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "assistant"], name="thread_of_user"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}:{self.assistant_id}"


class Visit(models.Model):
    """A chat of an anonymous browser: no owner."""

    session_key = models.CharField(max_length=40, unique=True)
    payload = models.TextField()

    def __str__(self) -> str:
        return self.session_key


class Snapshot(models.Model):
    """Every write is a row of its own; the newest one counts."""

    chat = models.UUIDField(db_index=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    model_name = models.CharField(max_length=64)
    blob = models.TextField()
    version = models.IntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["chat", "created_at"], name="snapshot_of_chat")]

    def __str__(self) -> str:
        return f"{self.chat} {self.pk}"


class Entry(models.Model):
    """Rows that are added for each write, of a chat that a text names; the key orders them."""

    session_key = models.CharField(max_length=255, db_index=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE)
    payload = models.TextField(null=True)

    def __str__(self) -> str:
        return f"{self.session_key} {self.pk}"
