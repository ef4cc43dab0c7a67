"""What a sync would do, by reading alone: no lock is taken, and nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from django.db.models import QuerySet

from conversations import conf
from conversations.batches import BATCH, only_in_legacy
from conversations.models import ConversationState, ConversationTombstone
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import probed_between
from conversations.sync.carrying import ACTIONS, Action, Target, the_legacy_store
from conversations.truth import Numbers, Truth, verdict


def plan(
    to: Target | str, *, progress: Callable[[int], None] = lambda number: None
) -> Counter[Action]:
    """Return what a sync would do with every conversation: how many of each action.

    As of one look at each: what is written meanwhile may count as before or as after. Of blobs
    nothing is read, so what cannot be read counts as what would be done with it; and a blob that
    vanished from legacy, which `sync --to legacy ID` writes again, is not looked for.

    Raises: ConversationNotFound when there is no legacy store to sync with.
    """
    target = Target(to)
    legacy = the_legacy_store(target)
    counts: Counter[Action] = Counter()
    for number, action in enumerate(_actions(legacy, target), start=1):
        counts[action] += 1
        progress(number)
    return counts


def pending(to: Target | str) -> Iterator[str]:
    """Yield the conversations that a sync would write, by reading alone."""
    target = Target(to)
    legacy = the_legacy_store(target)
    for conversation_id, action in _in_tables(legacy, target):
        if action != Action.UNCHANGED:
            yield conversation_id
    if target == Target.TABLES:
        yield from only_in_legacy()


def _actions(legacy: LegacyStore, target: Target) -> Iterator[Action]:
    yield from (action for _, action in _in_tables(legacy, target))
    for page in _pages(only_in_legacy()):
        tombstones = ConversationTombstone.rows.using(conf.alias())
        deleted = tombstones.filter(conversation_id__in=page).count()
        yield from [Action.ERASED] * deleted
        alone = Action.TAKEN_IN if target == Target.TABLES else Action.UNCHANGED
        yield from [alone] * (len(page) - deleted)


def _in_tables(legacy: LegacyStore, target: Target) -> Iterator[tuple[str, Action]]:
    """Yield every conversation of the tables, and what would be done with it."""
    last = 0
    while True:
        page = list(_rows().filter(pk__gt=last).order_by("pk")[:BATCH])
        if not page:
            return
        probes = {
            found[0]: legacy.judge(found[3], found[2]) == found[2]
            for found in probed_between(legacy.probe(), low=last, high=page[-1].pk)
        }
        for row in page:
            if row.pk in probes:
                yield row.conversation_id, _action(row, target, matches=probes[row.pk])
        last = page[-1].pk


def _action(row: ConversationState, target: Target, *, matches: bool) -> Action:
    truth = verdict(Numbers(row.revision, row.legacy_revision), token_matches=matches)
    if truth == Truth.BOTH:
        return Action.UNCHANGED
    needless = Truth.NORMALIZED if target == Target.TABLES else Truth.LEGACY
    return Action.UNCHANGED if truth == needless else ACTIONS[truth]


def _rows() -> QuerySet[ConversationState]:
    rows = ConversationState.rows.using(conf.alias())
    return rows.only("conversation_id", "revision", "legacy_revision")


def _pages(ids: Iterable[str]) -> Iterator[list[str]]:
    page: list[str] = []
    for found in ids:
        page.append(found)
        if len(page) == BATCH:
            yield page
            page = []
    if page:
        yield page
