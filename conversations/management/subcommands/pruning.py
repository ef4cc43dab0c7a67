"""`prune`: remove superseded messages by the retention rule."""

from __future__ import annotations

from argparse import ArgumentParser

from conversations import retention
from conversations.management.subcommands.base import (
    DONE,
    FAILED,
    Output,
    Row,
    Subcommand,
    with_dry_run,
    with_ids,
)


def _prune(output: Output, *, ids: list[str], dry_run: bool) -> None:
    found = retention.prune(ids or None, dry_run=dry_run)
    output.report((_pruned(one) for one in found), dry_run=dry_run)


def _pruned(found: retention.Pruned) -> Row:
    return Row(
        count="failed" if found.reason else "superseded versions pruned",
        text=f"{found.conversation_id}: {found.reason or f'{found.versions} versions'}",
        data={"conversation_id": found.conversation_id}
        | ({"reason": found.reason} if found.reason else {"versions": found.versions}),
        notable=bool(found.reason),
        exit_code=FAILED if found.reason else DONE,
    )


def _arguments(parser: ArgumentParser) -> None:
    with_ids(parser)
    with_dry_run(parser)


SUBCOMMANDS = (
    Subcommand("prune", "Remove superseded messages by the retention rule.", _prune, _arguments),
)
