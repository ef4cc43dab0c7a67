"""The owners of a file's conversations. None becomes ownerless unless the caller says so.

A chat's "user" is a user's name: the text in the user model's USERNAME_FIELD, as the database
compares it. It is an e-mail address only if that is this field. A number is no name: it may be a
key of any database. Our own format's `user` is a primary key of the exporting database. Its
`legacy_user` need not exist in this database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth import get_user_model

from conversations import conf
from conversations.content.codec import storable
from conversations.exceptions import InvalidOwner
from conversations.formats.records import Record
from conversations.routing.owners import owner_key, user_exists
from flags.texts import shown

# The prefix by which an operator names a user by primary key.
PK = "pk:"
_UNKNOWN, _NONE = "unknown_owner", "no_owner"


class Refused(Exception):
    """The conversation is not written; the message is the reason, `reason_class` its slug."""

    def __init__(self, reason: str, reason_class: str) -> None:
        self.reason_class = reason_class
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Owners:
    """An operator's instructions about owners.

    `mapping` is from a file's name of an owner to a primary key in this database as text, or None
    for no owner. `assigned`, a primary key, becomes the owner if the file and the mapping give
    none; with `ownerless`, the conversation then has no owner. Without either it is refused, with
    two exceptions. Records may state that they have no owner. Chats may name no user if
    `REQUIRE_OWNER` is off.
    """

    mapping: Mapping[str, str | None] = field(default_factory=dict)
    assigned: str | None = None
    ownerless: bool = False


def user_key(name: str) -> str:
    """Return the primary key, as text, of the user that an operator names.

    A name is a value of USERNAME_FIELD, or "pk:" and a primary key.

    Raises: InvalidOwner, quoting the name, if that is no user, or more than one.
    """
    if name.startswith(PK):
        key = owner_key(name.removeprefix(PK))
        if key is None or not user_exists(key):
            raise InvalidOwner(f"there is no user {_quoted(name)}.")
        return key
    keys = _keys_named(name)
    if len(keys) != 1:
        raise InvalidOwner(_problem_of(name, keys) + ".")
    return keys[0]


def owner_of(record: Record, owners: Owners) -> str | None:
    """Return the primary key of a conversation's owner as text, or None for no owner.

    Raises: Refused.
    """
    said = _said(record)
    if said is not None and said in owners.mapping:
        return owners.mapping[said]
    try:
        if record.username is not None:
            if record.is_number:
                raise Refused(
                    f"user: {shown(record.username)} is a number, and no user's name", _UNKNOWN
                )
            keys = _keys_named(record.username)
            if len(keys) == 1:
                return keys[0]
            raise Refused(f"user: {_problem_of(record.username, keys)}", _UNKNOWN)
        if said is not None:
            return _by_key(record, said)
    except Refused:
        if owners.assigned is None and not owners.ownerless:
            raise
    return _of_nobody(record, owners)


def plain_owners(records: Sequence[Record], owners: Owners) -> Mapping[str, str | None]:
    """Return the owners of conversations, except those that need a look of their own.

    It does not check that a primary key belongs to a user.
    """
    mapping = owners.mapping
    names = {one.username for one in records if one.username not in mapping} - {None}
    named = _keys_of({str(name) for name in names})
    found: dict[str, str | None] = {}
    for record in records:
        said = _said(record)
        try:
            if said is not None and said in mapping:
                found[record.conversation_id] = mapping[said]
            elif record.username is not None:
                if record.username in named and not record.is_number:
                    found[record.conversation_id] = named[record.username]
            elif said is not None:
                found[record.conversation_id] = owner_key(said, required=False)
            else:
                found[record.conversation_id] = _of_nobody(record, owners)
        except (InvalidOwner, Refused):
            continue
    return found


def _said(record: Record) -> str | None:
    """Return the file's name of the owner."""
    return record.username or record.owner or record.legacy_user


def _by_key(record: Record, key: str) -> str | None:
    name = "user" if record.legacy_user is None else "legacy_user"
    try:
        owner = owner_key(key, required=False)
    except InvalidOwner:
        raise Refused(f"{name}: can be no user's primary key here", _UNKNOWN) from None
    if record.owner is not None and owner is not None and not user_exists(owner):
        raise Refused("user: there is no such user here", _UNKNOWN)
    return owner


def _of_nobody(record: Record, owners: Owners) -> str | None:
    """Return the owner if the file names no owner in this database. Raises: Refused."""
    if owners.assigned is not None or owners.ownerless:
        return owners.assigned
    # Our own format states that there is no owner; a chat merely names none.
    if record.places is None and conf.require_owner():
        raise Refused('it names no "user", and REQUIRE_OWNER is set', _NONE)
    return None


def _keys_named(name: str) -> list[str]:
    """Return the primary keys of the users with a name, two at most."""
    if not storable(name):
        # No column holds it, and a database would refuse the query.
        return []
    model: Any = get_user_model()
    users = model._base_manager.using(conf.alias()).filter(**{model.USERNAME_FIELD: name})
    return [str(key) for key in users.order_by("pk").values_list("pk", flat=True)[:2]]


def _keys_of(names: set[str]) -> Mapping[str, str]:
    """Return the keys of users by their names; {} if a name has two spellings or two users."""
    if not names:
        return {}
    model: Any = get_user_model()
    name = model.USERNAME_FIELD
    users = model._base_manager.using(conf.alias()).filter(**{f"{name}__in": sorted(names)})
    rows = [(str(user), str(key)) for user, key in users.values_list(name, "pk")]
    found = dict(rows)
    return found if len(found) == len(rows) and found.keys() <= names else {}


def _problem_of(name: str, keys: Sequence[str]) -> str:
    users = "no user" if not keys else "more than one user"
    return f"{users} here is named {_quoted(name)}"


def _quoted(name: str) -> str:
    return f'"{shown(name)}"'
