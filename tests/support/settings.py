"""Settings of the test suite: the sample project's, on the database that TEST_DATABASE names.

`tests.support.plugin` has put the server's address into DATABASE_URL before this is read. A process
that a test starts reads TEST_DATABASE_NAME, and joins the running test database.
"""

import os
import tempfile
from pathlib import Path

# The suite runs with the settings of development, against the developer's shell.
os.environ["ENVIRONMENT"] = "development"
for variable in (
    "DEBUG",
    "SECRET_KEY",
    "USE_NEW_STORAGE",
    "USE_NEW_SAVE",
    "USE_NEW_LOAD",
    "PARALLEL_MODE",
    "PERFORMANCE_MONITORING",
):
    os.environ.pop(variable, None)

from config.settings import *  # noqa: E402, F403
from config.settings import DATABASES, INSTALLED_APPS  # noqa: E402

INSTALLED_APPS = [*INSTALLED_APPS, "tests.support.blobs", "tests.support.hostshapes"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

DEFAULT = DATABASES["default"]
if os.environ.get("TEST_DATABASE", "sqlite") == "sqlite":
    # A file, so that threads and other processes see the same database.
    folder = Path(os.environ.get("TEST_FOLDER", tempfile.gettempdir()))
    DEFAULT["NAME"] = folder / "unused.sqlite3"
    DEFAULT["TEST"] = {"NAME": folder / f"test_{WORKER}.sqlite3"}
if "TEST_DATABASE_NAME" in os.environ:
    DEFAULT["NAME"] = os.environ["TEST_DATABASE_NAME"]
