"""The settings of that host. SPELLED says in which database and by which collation, as JSON."""

import json
import os

_given = json.loads(os.environ["SPELLED"])
COLLATION = _given["collation"]
# How the collation is made, where the database does not bring it.
COLLATION_LOCALE = _given.get("locale", "")
DATABASES = {"default": _given["database"]}
CONVERSATIONS = _given["conversations"]
SECRET_KEY = "only for this test project"
USE_TZ = True
AUTH_USER_MODEL = "spelled.Member"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "waffle",
    "conversations",
    "memory",
    "flags",
    "tests.support.spelled",
]
