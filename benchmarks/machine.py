"""Where and with what a run was made: versions, cores and memory; no names."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import django
import psycopg
from django.db import connection


def setting() -> dict[str, Any]:
    """Return what figures depend on, as a JSON object."""
    return {
        "database": f"{connection.vendor} {_server_version()}",
        "python": platform.python_version(),
        "django": django.get_version(),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "waffle": version("django-waffle"),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30),
        # Of the minute before: what else the machine was doing.
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _server_version() -> str:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SHOW server_version")
        else:
            cursor.execute("SELECT sqlite_version()")
        return str(cursor.fetchone()[0]).split(" ", 1)[0]


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
