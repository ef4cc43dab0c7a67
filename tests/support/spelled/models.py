"""Users whose primary key is a text."""

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models


class Member(AbstractBaseUser):
    """A user who is named by a text, however it is spelled."""

    name = models.CharField(primary_key=True, max_length=64, db_collation=settings.COLLATION)

    USERNAME_FIELD = "name"

    def __str__(self) -> str:
        return self.name
