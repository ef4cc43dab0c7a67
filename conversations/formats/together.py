"""Creating many conversations at once, of records that are new here.

That is for the plain case alone. Whatever is known here, is a fork, or fails, is left to be
imported by itself: see `lossless`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.db import Error, connections, transaction
from django.utils import timezone

from conversations import conf
from conversations.exceptions import ConversationStoreError, InvalidOwner
from conversations.formats.records import Record
from conversations.formats.writing import creation
from conversations.locking import new_among, try_lock
from conversations.owners import columns_of_owners, owner_key
from conversations.stores.normalized import create_all
from conversations.stores.registry import legacy_store
from conversations.transactions import lost, translated

logger = logging.getLogger("conversations")

# What is read ahead, and locked for a moment; a larger line is read alone.
TOGETHER, TOGETHER_BYTES = 100, 2**22


def created_together(records: Sequence[Record]) -> frozenset[str]:
    """Create those conversations that nobody here knows, in one transaction, or none of them.

    Takes only locks that nobody holds. Returns: the ids of those that were created.

    Raises: the database's error inside a caller's transaction that is lost with it.
    """
    if len(records) < 2:
        return frozenset()
    connection = connections[conf.alias()]
    try:
        with translated(records[0].conversation_id), transaction.atomic(using=conf.alias()):
            return _created(records)
    except (Error, ConversationStoreError, ValueError) as error:
        if connection.in_atomic_block and lost(conf.alias()):
            raise
        logger.info("%s lines at once: %s", len(records), type(error).__name__)
    if not connection.in_atomic_block:
        # Nobody else does this between requests, and a lost connection would fail for ever.
        connection.close_if_unusable_or_obsolete()
    return frozenset()


def _created(records: Sequence[Record]) -> frozenset[str]:
    tokens = _unknown([record.conversation_id for record in records])
    owners = _owners([record for record in records if record.conversation_id in tokens])
    columns = columns_of_owners(owners.values())
    now = timezone.now()
    creations = []
    for record in records:
        owner = owners.get(record.conversation_id)
        found = columns.get(owner)
        if record.conversation_id not in owners or found is None:
            continue
        if record.owner is not None and found["user_id"] is None:
            # There is no such user.
            continue
        token = tokens[record.conversation_id]
        creations.append(creation(record, found, token=token, now=now))
    create_all(creations)
    return frozenset(one.row.conversation_id for one in creations)


def _unknown(ids: Sequence[str]) -> Mapping[str, str]:
    """Lock those conversations that no store holds. Returns: legacy's token of each."""
    # Whether they are here is looked up under their locks.
    new = new_among(try_lock(ids))
    legacy = legacy_store()
    if legacy is None:
        return dict.fromkeys(new, "")
    looks = [look for look in legacy.looks(new) if not look.held]
    # Legacy is not written: its number stays 0, so that the tables are the truth.
    legacy.settle_looks(looks, revision=0)
    return {look.conversation_id: look.token for look in looks}


def _owners(records: Sequence[Record]) -> Mapping[str, str | None]:
    """Return the owner's key of each conversation, but for those that need a look by themselves."""
    named = _users({record.username for record in records if record.username is not None})
    owners: dict[str, str | None] = {}
    for record in records:
        if record.username is not None:
            if named is not None:
                owners[record.conversation_id] = named.get(record.username)
            continue
        try:
            key = owner_key(record.owner or record.legacy_user, required=False)
        except InvalidOwner:
            continue
        owners[record.conversation_id] = key
    return owners


def _users(names: set[str]) -> Mapping[str, str] | None:
    """Return the keys of users by their names; None where a column takes two names for one."""
    if not names:
        return {}
    model: Any = get_user_model()
    name = model.USERNAME_FIELD
    users = model._base_manager.using(conf.alias()).filter(**{f"{name}__in": sorted(names)})
    found = {str(user): str(pk) for user, pk in users.values_list(name, "pk")}
    return found if found.keys() <= names else None
