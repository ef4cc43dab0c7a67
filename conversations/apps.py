"""The app that keeps conversations: their state, messages and deletions."""

from django.apps import AppConfig


class ConversationsConfig(AppConfig):
    name = "conversations"
    verbose_name = "Conversations"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from conversations import checks, gates, shadow, signals  # noqa: F401  (registers checks)
        from flags import monitor

        signals.connect()
        gates.register()
        monitor.every_hour(shadow.prune)
