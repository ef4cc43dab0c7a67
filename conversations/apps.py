"""The app that keeps conversations: their state, messages and deletions."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    name = "conversations"
    verbose_name = "Conversations"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from conversations import checks, health, shadow, signals  # noqa: F401
        from conversations.gates import steps
        from flags import monitor

        signals.connect()
        steps.register()
        health.register()
        monitor.every_hour(shadow.prune)
