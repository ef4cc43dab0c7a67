"""Running functions of the suite in other processes, against the running test database."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db import connection

ROOT = Path(__file__).resolve().parents[1]
# A process that takes longer than this has hung.
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """A function, as "module:function", and its JSON arguments."""

    function: str
    arguments: dict[str, Any]


def start(job: Job, *, url: str = "") -> subprocess.Popen[str]:
    """Start a process that runs a job against the test database of this one, or that of `url`."""
    environment = os.environ | {"TEST_DATABASE_NAME": str(connection.settings_dict["NAME"])}
    if url:
        name = urlsplit(url).path.removeprefix("/")
        environment |= {"DATABASE_URL": url, "TEST_DATABASE_NAME": name}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.processes", job.function, json.dumps(job.arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> Any:
    """Return what a job returned. Raises: AssertionError with its traceback if it failed."""
    out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors[-4000:]
    return json.loads(out.splitlines()[-1])


def together(jobs: list[Job]) -> list[Any]:
    """Run jobs at the same time, each in a process of its own. Returns: their results."""
    processes = [start(job) for job in jobs]
    try:
        return [result_of(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def main() -> None:
    """Run one job in this process, and print what it returned."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    module, function = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
