"""Who owns a conversation: a user, named by any form of its primary key."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeGuard
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import connections
from django.db.models import CharField, TextField

from conversations import conf
from conversations.exceptions import ConversationNotFound, InvalidOwner
from flags.texts import quoted


class AnyOwner(Enum):
    """A caller that sees the conversations of every owner, also with `REQUIRE_OWNER`."""

    ANY_OWNER = "any owner"


ANY_OWNER = AnyOwner.ANY_OWNER


class UserLike(Protocol):
    """An instance of the user model, as type checkers see it: no anonymous visitor."""

    @property
    def pk(self) -> Any:
        """Return the primary key."""
        ...

    @property
    def is_authenticated(self) -> Literal[True]:
        """Return True: an anonymous visitor says False."""
        ...


# A user, or a form of its primary key.
UserKey = UserLike | int | str | UUID
# The same, or every conversation: ANY_OWNER, and None unless REQUIRE_OWNER is set.
UserRef = UserKey | AnyOwner | None


def owner_key(user_id: Any, *, required: bool | None = None) -> str | None:
    """Return the primary key of a user as text, or None for no user.

    Raises: InvalidOwner when this cannot be a user's key, or when one is required. An unsaved
    user, such as an anonymous visitor, is refused: None would see everything.
    """
    if user_id is ANY_OWNER:
        if required:
            raise InvalidOwner("ANY_OWNER is no user: pass one, or its primary key.")
        return None
    if user_id is None:
        if conf.require_owner() if required is None else required:
            raise InvalidOwner(
                "CONVERSATIONS['REQUIRE_OWNER'] is set: pass user_id, a user or its primary key."
            )
        return None
    model = settings.AUTH_USER_MODEL
    kind: type = type(user_id)
    if kind in (int, str, UUID):
        return _key(model, kind, user_id)
    users = _user_class(model)
    if isinstance(user_id, users):
        # A subclass of the user model may have another primary key.
        user_id = getattr(user_id, users._meta.pk.attname)
        if user_id is None:
            raise InvalidOwner("This is not a saved user, so it owns nothing: save it first.")
    elif hasattr(user_id, "pk"):
        raise InvalidOwner(
            f"{user_id.__class__.__name__} is not a saved user: pass an instance of {model},"
            " or its primary key."
        )
    if isinstance(user_id, bool | float | bytes) or not _is_hashable(user_id):
        raise InvalidOwner(f"A {user_id.__class__.__name__} is no user's primary key.")
    return _key(model, type(user_id), user_id)


def _is_hashable(value: Any) -> TypeGuard[Hashable]:
    # Only hash() tells: a tuple hashes its elements.
    with suppress(TypeError):
        hash(value)
        return True
    return False


@lru_cache(maxsize=8)
def _user_class(model: str) -> Any:
    """Return the class of every user: of proxies and subclasses of the user model as well."""
    return get_user_model()._meta.concrete_model or get_user_model()


@lru_cache(maxsize=1024)
def _key(model: str, kind: type, value: Any) -> str:
    """Return a value as text, if the model's primary key takes it. (1 and "1" are cached apart.)"""
    key = get_user_model()._meta.pk
    try:
        converted = key.to_python(value)
        key.run_validators(converted)
    except (ValidationError, TypeError, ValueError, OverflowError):
        # Refused below: a validator's error repeats the value, and would be the context here.
        converted = None
    if converted in key.empty_values:
        raise InvalidOwner(f"{quoted(value)} is no user's primary key.")
    # A column of texts would take any object by its str().
    if converted != value and not isinstance(value, int | str | UUID):
        raise InvalidOwner(f"A {kind.__name__} is no user's primary key.")
    return str(converted)


def check_owner(owner: str | None, *, actual: str | None) -> None:
    """Raise ConversationNotFound when `owner` does not own a conversation.

    None passes: a caller without a user sees everything.
    """
    if owner is not None and not same_owner(owner, actual):
        raise ConversationNotFound


def may_read(owner: str | None, *, actual: str | None) -> bool:
    """Whether a caller with `owner` (None: no user) may see a conversation of `actual`."""
    return owner is None or same_owner(owner, actual)


def same_owner(one: str | None, other: str | None) -> bool:
    """Whether two keys name one owner.

    A text column's collation may take two spellings for one key. Lists and foreign keys then find
    the user by either. The database decides, and is asked only where the spellings differ. An
    owner without a user has one spelling.
    """
    if one == other:
        return True
    users = get_user_model()._base_manager.using(conf.alias())
    if one is None or other is None or not isinstance(users.model._meta.pk, CharField | TextField):
        return False
    return bool(users.filter(pk=one).filter(pk=other).exists())


def user_exists(owner: str) -> bool:
    """Whether a user with this primary key exists."""
    return bool(get_user_model()._base_manager.using(conf.alias()).filter(pk=owner).exists())


def owner_columns(owner: str | None) -> dict[str, Any]:
    """Return the columns of an owner: a user, or one that exists in legacy only."""
    if owner is None or user_exists(owner):
        return {"user_id": owner, "legacy_user_id": None}
    return {"user_id": None, "legacy_user_id": owner}


def columns_of_owners(owners: Iterable[str | None]) -> Mapping[str | None, dict[str, Any]]:
    """Return `owner_columns` of each owner, for many conversations in one transaction.

    On PostgreSQL the users' rows are locked against deletion until the transaction ends. Owners
    whose rows are already locked (being deleted) are skipped.
    """
    named = {owner for owner in owners if owner is not None}
    columns: dict[str | None, dict[str, Any]] = {None: {"user_id": None, "legacy_user_id": None}}
    kept = _users(named, kept=True)
    rest = named - kept
    there = _users(rest)
    for owner in named & kept:
        columns[owner] = {"user_id": owner, "legacy_user_id": None}
    # A column that takes two spellings for one key gives another one back.
    for owner in rest - there if there <= rest and kept <= named else ():
        columns[owner] = {"user_id": None, "legacy_user_id": owner}
    return columns


def _users(owners: set[str], *, kept: bool = False) -> set[str]:
    """Return the keys of those owners that are users; `kept` locks them against deletion."""
    if not owners:
        return set()
    users = get_user_model()._base_manager.using(conf.alias())
    rows = users.filter(pk__in=sorted(owners)).values_list("pk", flat=True)
    connection = connections[conf.alias()]
    if not kept or connection.vendor != "postgresql":
        return set(map(str, rows))
    sql, parameters = rows.query.get_compiler(using=conf.alias()).as_sql()
    with connection.cursor() as cursor:
        # As a foreign key does it: Django knows only locks that would hold up a login.
        cursor.execute(f"{sql} FOR KEY SHARE SKIP LOCKED", parameters)
        return {str(pk) for (pk,) in cursor.fetchall()}
