"""Look up what a message became, and keep the digests of its conversation by blocks.

An edit of one message then reads as little of a long conversation as of a short one. A nullable
column without a default and an index over what was edited: seconds at most. Reversible.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("conversations", "0002_create_sync_tables")]

    operations = [
        migrations.AddField(
            model_name="conversationstate",
            name="message_blocks",
            field=models.BinaryField(
                help_text="Digests of the full blocks of messages; null: all are one block.",
                null=True,
            ),
        ),
        migrations.AddIndex(
            model_name="conversationmessage",
            index=models.Index(
                condition=models.Q(("supersedes__isnull", False)),
                fields=["supersedes"],
                name="message_successor",
            ),
        ),
    ]
