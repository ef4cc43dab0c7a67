"""The app that keeps conversations: their state, messages and deletions."""

from flags import logs
from flags.installation import OneOfTogether


class ConversationsConfig(OneOfTogether):
    default = True
    name = "conversations"
    verbose_name = "Conversations"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        logs.escape(self.name)
        # Importing checks registers them.
        from conversations import checks, receivers  # noqa: F401
        from conversations.reading import shadow
        from conversations.rollout import health
        from conversations.rollout.gates import steps
        from flags import reporter

        receivers.connect()
        steps.register()
        health.register()
        reporter.every_hour(shadow.prune)
