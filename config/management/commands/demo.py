"""`manage.py demo`: a whole rollout, played on a database of its own.

It fills legacy with conversations, moves them to the tables switch by switch and back, compares
the stores, and shows the admin.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils.crypto import get_random_string

from config.demo import runs, sizes, synthetic
from config.demo.comparison import Comparison
from config.demo.report import STEP_COLUMNS, STEP_UNITS, comparison_lines, step_lines
from config.demo.rollout import Rollout
from config.demo.turns import Conversation, conversations_of, turns_of
from conversations import formats
from conversations.exceptions import ConversationStoreError
from flags.management import output
from flags.texts import quoted

HOST, PORT = "127.0.0.1", 8000
LOGIN = "demo"
# The played turns of a conversation in a file. Its earlier turns are saved at once: real logs have
# over 1,000 turns, and legacy writes the whole conversation with each.
MOST_TURNS = 20


class Command(output.Command):
    help = "Play the rollout on conversations, compare the stores, and serve the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--serve",
            action=BooleanOptionalAction,
            default=True,
            help="Serve the admin afterwards, with a demo administrator.",
        )
        parser.add_argument(
            "--data",
            type=Path,
            help="Conversations in JSON Lines, gzipped or not; synthetic ones if left out.",
        )
        parser.add_argument("--limit", type=int, help="Play at most so many conversations.")
        parser.add_argument("--port", type=int, default=PORT, help="The port of the admin.")

    def run(
        self,
        *,
        serve: bool,
        data: Path | None,
        limit: int | None,
        port: int,
        **options: Any,
    ) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        try:
            found = synthetic.conversations() if data is None else formats.read_conversations(data)
            # Read before anything is removed, because a file may be missing or its last line bad.
            chosen = list(islice(found, limit))
            prefix = self._prepare()
            problems = self._play(chosen, data, prefix)
        except (ConversationStoreError, OSError) as error:
            raise CommandError(output.text_of(error)) from error
        if problems:
            raise CommandError(f"{problems} things were not equal.")
        if serve:
            self._serve(f"{HOST}:{port}")

    def _prepare(self) -> str:
        """Make room for this run. Returns: the prefix of its ids."""
        foreign = runs.foreign_conversation()
        if foreign is not None:
            raise CommandError(
                f"this database holds conversations that are not the demo's ({quoted(foreign)}),"
                " and the demo flips switches for all of them: name another in DATABASE_URL."
            )
        removed = runs.remove_earlier()
        if removed:
            sizes.compact()
            self.stdout.write(f"{removed} conversations of an earlier demo were deleted.")
        return runs.free_prefix()

    def _play(self, chosen: list[formats.Conversation], data: Path | None, prefix: str) -> int:
        """Play the rollout and the comparison. Returns: the number of differences."""
        most = synthetic.MOST_TURNS if data is None else MOST_TURNS
        conversations = conversations_of(chosen, prefix=prefix, most_turns=most)
        if not conversations:
            raise CommandError("there is no conversation to play.")
        self._introduce(conversations, data)
        self._say_what_is_merged(chosen, most)
        self._say("", STEP_COLUMNS, STEP_UNITS)
        problems = 0
        for step in Rollout(conversations).steps():
            self._say(*step_lines(step))
            problems += len(step.problems)
        comparison = Comparison(conversations)
        measures = comparison.run()
        weighed = sizes.how_weighed()
        lines = comparison_lines(measures, turns=comparison.turns, weighed=weighed)
        self._say("", *comparison.problems, *lines)
        return problems + len(comparison.problems)

    def _introduce(self, conversations: list[Conversation], data: Path | None) -> None:
        kind = "synthetic conversations" if data is None else f"conversations of {data.name}"
        turns = sorted(len(one.turns) for one in conversations)
        messages = sum(len(one.document.messages) for one in conversations)
        self._say(
            f"{len(conversations)} {kind}: {messages:,} messages, {sum(turns):,} turns"
            f" ({turns[0]} to {turns[-1]} a conversation), each a load and a save.",
            "After each step every conversation is loaded and compared with what was put in.",
        )

    def _say_what_is_merged(self, chosen: list[formats.Conversation], most: int) -> None:
        longer = sum(len(turns_of(one.state.conversation_history)) > most for one in chosen)
        if longer:
            self._say(
                f"{longer} of them are longer: of those the last {most - 1} turns are played one"
                " by one, after everything before them was saved at once."
            )

    def _serve(self, address: str) -> None:
        self._say("", f"The admin: http://{address}/admin/")
        if settings.DEBUG:
            password = get_random_string(12)
            administrator(password)
            self._say(f"login {LOGIN}  password {password}")
        else:
            self._say("No demo administrator was created, because DEBUG is off.")
        call_command("runserver", address, use_reloader=False)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.stdout.write(line)
        self.stdout.flush()


def administrator(password: str) -> None:
    """Create the demo administrator, or give the one of an earlier demo a new password."""
    model = get_user_model()
    named: dict[str, Any] = {model.USERNAME_FIELD: LOGIN}
    user, _ = model._base_manager.get_or_create(**named)
    for name in ("is_staff", "is_superuser", "is_active"):
        setattr(user, name, True)
    user.set_password(password)
    user.save()
