"""The user whose conversations are exported and imported."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("amira")
