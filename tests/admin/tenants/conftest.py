"""The site of a host with tenants, a user of each tenant, and the staff of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import clear_url_caches

from tests.support import tenants
from tests.support.tenant_rows import HIDDEN, OWN


@pytest.fixture(autouse=True)
def site(settings: Any) -> Any:
    settings.ROOT_URLCONF = tenants.__name__
    return tenants.site


@pytest.fixture
def amira() -> User:
    return User.objects.create_user("amira", last_name=OWN)


@pytest.fixture
def noor() -> User:
    return User.objects.create_user("noor", last_name=HIDDEN)


@pytest.fixture
def staff(client: Client) -> Client:
    """Log in a member of the own tenant's staff, who may view everything, and delete."""
    user = User.objects.create_user("staff", last_name=OWN, is_staff=True)
    wanted = Permission.objects.filter(codename__startswith="view_")
    deleting = Permission.objects.filter(codename="delete_conversationstate")
    user.user_permissions.set(wanted | deleting)
    client.force_login(user)
    return client


@pytest.fixture
def policy(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let the host register another admin of conversations."""

    def register(shown: Any) -> None:
        made = tenants.site_with(shown)
        monkeypatch.setattr(tenants, "urlpatterns", tenants.urls_of(made))
        clear_url_caches()

    return register


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    yield
    clear_url_caches()
