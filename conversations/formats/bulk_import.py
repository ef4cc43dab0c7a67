"""Create many conversations at once, of records that are new to the database.

Only the plain case is handled here. Known conversations, forks and failures are left to be
imported one by one: see `lossless`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from django.db import Error, connections
from django.utils import timezone

from conversations import conf
from conversations.exceptions import ConversationStoreError
from conversations.formats.ownership import Owners, plain_owners
from conversations.formats.records import Record
from conversations.formats.writing import creation
from conversations.routing.locks import new_among, try_lock
from conversations.routing.owners import columns_of_owners
from conversations.routing.standing import in_transaction
from conversations.routing.transactions import lost
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import create_all
from flags.connections import managed
from flags.schema import named

logger = logging.getLogger("conversations")

# How much is read ahead, and locked for a moment; a larger line is read alone.
TOGETHER, TOGETHER_BYTES = 100, 2**22


def create_many(records: Sequence[Record], owners: Owners) -> Mapping[str, str | None]:
    """Create the conversations that no store knows, in one transaction, or none of them.

    It takes only free locks. Returns: the created conversations, with the owner of each.

    Raises: the database's error, if it spoils a caller's transaction.
    """
    if len(records) < 2:
        return {}
    connection = connections[conf.alias()]
    try:
        with in_transaction(records[0].conversation_id) as decision:
            return _created(records, owners, decision.legacy)
    except (Error, ConversationStoreError, ValueError) as error:
        if managed(connection) and lost(conf.alias()):
            raise
        logger.info("%s lines at once: %s", len(records), named(error))
    return {}


def _created(
    records: Sequence[Record], said: Owners, legacy: LegacyStore | None
) -> Mapping[str, str | None]:
    tokens = _unknown([record.conversation_id for record in records], legacy)
    owners = plain_owners([one for one in records if one.conversation_id in tokens], said)
    columns = columns_of_owners(owners.values())
    now = timezone.now()
    creations = []
    for record in records:
        owner = owners.get(record.conversation_id)
        found = columns.get(owner)
        if record.conversation_id not in owners or found is None:
            continue
        if found["legacy_user_id"] is not None and record.legacy_user is None:
            # The user does not exist.
            continue
        token = tokens[record.conversation_id]
        creations.append(creation(record, found, token=token, now=now))
    create_all(creations)
    return {one.row.conversation_id: owners[one.row.conversation_id] for one in creations}


def _unknown(ids: Sequence[str], legacy: LegacyStore | None) -> Mapping[str, str]:
    """Lock those conversations that no store holds. Returns: legacy's token of each."""
    # Whether they are here is looked up under their locks.
    new = new_among(try_lock(ids))
    if legacy is None:
        return dict.fromkeys(new, "")
    looks = [look for look in legacy.read_many(new) if not look.held]
    # Legacy is not written: its number stays 0, so that the tables hold the truth.
    legacy.mark_many_ingested(looks, revision=0)
    return {look.conversation_id: look.token for look in looks}
