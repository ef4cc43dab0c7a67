"""The plan of a sync, by reading alone: no lock is taken, and nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from django.db import DataError, OperationalError

from conversations import conf
from conversations.models import ConversationTombstone
from conversations.rollout.sync.one import ACTIONS, Action, Target, fits, the_legacy_store
from conversations.routing.ids import BATCH, in_portions, only_in_legacy, pages_of
from conversations.routing.standing import truth_by_token_value
from conversations.routing.transactions import attempt
from conversations.routing.truth import Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import find_rows_with_token
from conversations.stores.sql.cursors import cannot_be_read
from conversations.stores.types import BlobState


def plan(
    to: Target | str, *, progress: Callable[[int], None] = lambda number: None
) -> Counter[Action]:
    """Return the number of each action that a sync of every conversation would take.

    It looks once at each conversation: concurrent writes may count as before or as after. Blobs to
    be ingested are read, and unreadable ones count as failed. It does not look for blobs that
    vanished from legacy, which `sync --to legacy ID` writes again.

    Raises: ConversationNotFound if there is no legacy store to sync with.
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
    for page in pages_of(only_in_legacy()):
        tombstones = ConversationTombstone.rows.using(conf.alias())
        rows = tombstones.filter(conversation_id__in=page)
        gone = set(rows.values_list("conversation_id", flat=True))
        yield from [Action.ERASED] * len(gone)
        alone = [name for name in page if name not in gone]
        if target == Target.LEGACY:
            yield from [Action.UNCHANGED] * len(alone)
            continue
        fitting = [name for name in alone if fits(name)]
        yield from [Action.FAILED] * (len(alone) - len(fitting))
        for portion in in_portions(fitting, legacy.sizes(fitting)):
            for look in _looks(legacy, portion):
                yield Action.TAKEN_IN if look.stored is not None else Action.FAILED


def _looks(legacy: LegacyStore, ids: Sequence[str]) -> Sequence[BlobState]:
    """Return a look at each; if one is unreadable, each half is looked at by itself."""
    try:
        with attempt():
            return legacy.read_many(ids)
    except (OperationalError, DataError) as error:
        if not cannot_be_read(error):
            raise
    if len(ids) == 1:
        return [BlobState(ids[0], held=True, token="")]
    middle = len(ids) // 2
    return [*_looks(legacy, ids[:middle]), *_looks(legacy, ids[middle:])]


def _in_tables(legacy: LegacyStore, target: Target) -> Iterator[tuple[str, Action]]:
    """Yield every conversation of the tables, and the action that a sync would take."""
    last = 0
    while page := find_rows_with_token(legacy.token_sql(), after=last, limit=BATCH):
        for row in page:
            truth = truth_by_token_value(row, legacy, row.token_value)
            yield row.conversation_id, _action(truth, target)
        last = page[-1].pk


def _action(truth: Truth, target: Target) -> Action:
    if truth == Truth.BOTH:
        return Action.UNCHANGED
    needless = Truth.NORMALIZED if target == Target.TABLES else Truth.LEGACY
    return Action.UNCHANGED if truth == needless else ACTIONS[truth]
