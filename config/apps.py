"""The sample project as an app: its commands, and the mode of its database file."""

import os
from contextlib import suppress
from pathlib import Path

from django.apps import AppConfig
from django.db import connection


class SampleConfig(AppConfig):
    """Makes the SQLite file readable by its owner alone; SQLite would let every user read it."""

    name = "config"

    def ready(self) -> None:
        name = str(connection.settings_dict["NAME"])
        if connection.vendor != "sqlite" or name.startswith("file:") or ":memory:" in name:
            return
        # If the folder is missing, SQLite's own error says so at the first connection.
        with suppress(FileExistsError, FileNotFoundError):
            os.close(os.open(Path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
