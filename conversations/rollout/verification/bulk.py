"""Verify many conversations at once, if they are plainly in order.

Most are: their rows agree with their digests, and legacy holds the same, or is known not to. All
others, and all that fail here, are verified one by one. Both ways must agree: see `one`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from django.db import Error, connections

from conversations import conf
from conversations.content.differences import differences
from conversations.content.digests import EMPTY, roll
from conversations.content.document import Document
from conversations.content.field_codec import decode_fields
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationConflict, ConversationState
from conversations.rollout.verification.comparing import digest_mismatches, kind_of
from conversations.rollout.verification.kinds import Kind, Verified
from conversations.routing.ids import in_portions, recover
from conversations.routing.locks import token_value
from conversations.routing.standing import decide, truth_by_token_value
from conversations.routing.transactions import attempt, translated
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import Content, content_sizes, contents_of, find_rows
from conversations.stores.types import Stored

logger = logging.getLogger("conversations")

# A locked row is being written, and will be verified again: do not wait for it.
_NOTE = {
    "postgresql": "id IN (SELECT id FROM conversation_states WHERE {same} "
    "FOR NO KEY UPDATE SKIP LOCKED)",
    "sqlite": "{same}",
}


def portions(legacy: LegacyStore | None, ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Return conversations in portions that may be read at once; a large one is alone."""
    if len(ids) < 2:
        return [ids]
    try:
        with translated(ids[0], emergency=decide(ids[0]).emergency), attempt():
            sizes = dict(content_sizes(ids))
            for name, size in (legacy.sizes(ids) if legacy else {}).items():
                sizes[name] = sizes.get(name, 0) + size
    except (Error, StorageUnavailable) as error:
        recover(error)
        return [[name] for name in ids]
    return in_portions(ids, sizes)


def verify_all(legacy: LegacyStore | None, ids: Sequence[str]) -> Mapping[str, Verified]:
    """Verify conversations: note, and return, the results of those without a fault.

    If one fails, each half is tried by itself, until the failing one is alone, and left.
    """
    try:
        with translated(ids[0], emergency=decide(ids[0]).emergency), attempt():
            return _verified(legacy, ids)
    except Exception as error:  # noqa: BLE001 - a host's functions may raise anything
        recover(error)
        logger.info("%s conversations at once: %s", len(ids), type(error).__name__)
        if isinstance(error, StorageUnavailable) or len(ids) == 1:
            return {}
    middle = len(ids) // 2
    return {**verify_all(legacy, ids[:middle]), **verify_all(legacy, ids[middle:])}


def _verified(legacy: LegacyStore | None, ids: Sequence[str]) -> Mapping[str, Verified]:
    rows = find_rows(ids, token_sql=legacy.token_sql() if legacy else None)
    contents = contents_of([row.pk for row in rows])
    kinds = {row.pk: _kind_of(legacy, row) for row in rows}
    equal = [row.conversation_id for row in rows if kinds[row.pk] == Kind.EQUAL]
    looks = legacy.read_many(equal) if legacy and equal else ()
    held = {look.conversation_id: look.stored for look in looks}
    exact = legacy.exact if legacy else True
    plain = [
        row
        for row in rows
        if _is_plain(row, contents[row.pk], kinds[row.pk], held.get(row.conversation_id), exact)
    ]
    aside = _set_aside(plain)
    found = {
        row.conversation_id: Verified(
            row.conversation_id,
            (kinds[row.pk], Kind.QUARANTINED) if row.pk in aside else (kinds[row.pk],),
        )
        for row in plain
    }
    for in_order in (True, False):
        rows = [row for row in plain if found[row.conversation_id].in_order == in_order]
        _note(rows, in_order=in_order)
    return found


def _kind_of(legacy: LegacyStore | None, row: ConversationState) -> Kind:
    if legacy is None:
        return Kind.TABLES_ONLY
    return kind_of(row, truth_by_token_value(row, legacy, token_value(row)))


def _is_plain(
    row: ConversationState, content: Content, kind: Kind, stored: Stored | None, exact: bool
) -> bool:
    """Whether a conversation shows no fault."""
    fields = decode_fields(vars(row))
    if any(True for _ in digest_mismatches(row, content.versions, content.items, fields)):
        return False
    if kind != Kind.EQUAL:
        return True
    if stored is None:
        return False
    theirs = stored.document
    current = [entry for entry in content.versions if entry.superseded_in is None]
    if exact and theirs.messages_digest == roll(EMPTY, [entry.digest for entry in current]):
        # The rows match their digests, so equal digests mean equal content.
        if theirs.state_digest == bytes(row.state_digest):
            return True
    messages, items = ([entry.value for entry in each] for each in (current, content.items))
    ours = Document(fields, messages, items)
    return not any(True for _ in differences(ours, theirs, exact=exact))


def _set_aside(rows: Sequence[ConversationState]) -> set[int]:
    """Return the rows whose conversations have a blob that was set aside."""
    records = ConversationConflict.rows.using(conf.alias()).filter(
        conversation_id__in=[row.pk for row in rows],
        kind=ConversationConflict.Kind.QUARANTINED,
    )
    return set(records.values_list("conversation_id", flat=True))


def _note(rows: Sequence[ConversationState], *, in_order: bool) -> None:
    """Note in rows whether they are in order, unless they were written meanwhile."""
    new = [
        row
        for row in rows
        if row.verified_revision != (max(row.revision, row.legacy_revision) if in_order else -1)
    ]
    if not new:
        return
    connection = connections[conf.alias()]
    keys = ", ".join(["%s"] * len(new))
    values = ", ".join(["(%s, %s, %s)"] * len(new))
    same = f"id IN ({keys}) AND (id, revision, legacy_revision) IN (VALUES {values})"
    highest = "CASE WHEN revision > legacy_revision THEN revision ELSE legacy_revision END"
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE conversation_states SET verified_revision = {highest if in_order else -1}"
            f" WHERE {_NOTE[connection.vendor].format(same=same)}",
            [row.pk for row in new]
            + [number for row in new for number in (row.pk, row.revision, row.legacy_revision)],
        )
