"""Running functions of the suite in other processes, against the running test database.

They are forked from a process that has imported Django and the project once, and holds no
connection and no thread: that takes milliseconds, where a new interpreter takes a second.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db import connection

ROOT = Path(__file__).resolve().parents[2]
# A process that takes longer than this has hung.
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """A function, as "module:function", and its JSON arguments."""

    function: str
    arguments: dict[str, Any]


@dataclass
class Process:
    """A process that runs a job; looks like a `subprocess.Popen` with text pipes."""

    pid: int
    folder: Path
    returncode: int | None = field(default=None)

    def poll(self) -> int | None:
        """Return how it ended, None while it runs. Minus the signal that killed it."""
        # Written beside, and then renamed: a file that is there is whole.
        path = self.folder / "code"
        if self.returncode is None and path.exists():
            self.returncode = int(path.read_text())
        return self.returncode

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Wait for its end. Raises: subprocess.TimeoutExpired."""
        ends = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            threading.Event().wait(0.002)
        return code

    def communicate(self, timeout: float = PATIENCE_SECONDS) -> tuple[str, str]:
        """Wait for its end. Returns: what it printed, and its traceback."""
        self.wait(timeout)
        return (self.folder / "out").read_text(), (self.folder / "errors").read_text()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that the others of one server are forked from."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="processes-"))
        self.started = 0
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.processes", str(self.folder)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def fork(self, job: Job, *, database: str) -> Process:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.started += 1
        folder = self.folder / str(self.started)
        folder.mkdir()
        order = [str(folder), database, job.function, job.arguments]
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return Process(int(self.server.stdout.readline()), folder)

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(PATIENCE_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)


# By the address of the database server; "" is that of the tests.
_nurseries: dict[str, Nursery] = {}


def start(job: Job, *, url: str = "") -> Process:
    """Start a process that runs a job against the test database of this one, or that of `url`."""
    environment = {"DATABASE_URL": url} if url else {}
    if url not in _nurseries:
        _nurseries[url] = Nursery(environment)
    name = urlsplit(url).path.removeprefix("/") if url else str(connection.settings_dict["NAME"])
    return _nurseries[url].fork(job, database=name)


def result_of(process: Process) -> Any:
    """Return what a job returned. Raises: AssertionError with its traceback if it failed."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]
    return json.loads(out.splitlines()[-1])


def together(jobs: list[Job], *, url: str = "") -> list[Any]:
    """Run jobs at the same time, each in a process of its own. Returns: their results."""
    processes = [start(job, url=url) for job in jobs]
    try:
        return [result_of(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def serve() -> None:
    """Fork a process for every line of the standard input, and answer with its id."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.settings")
    django.setup()
    folders: dict[int, Path] = {}

    def reap(*_: Any) -> None:
        while folders:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            folder = folders.pop(pid)
            (folder / "ended").write_text(str(os.waitstatus_to_exitcode(status)))
            (folder / "ended").rename(folder / "code")

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        folder, database, function, arguments = json.loads(line)
        # Imported here, the next one that runs it has it already.
        importlib.import_module(function.split(":")[0])
        # A child that ends at once is reaped when it is known.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            # Its end is that of any process: what is registered with atexit is called.
            sys.exit(live(Path(folder), database, function, arguments))
        folders[pid] = Path(folder)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(pid, flush=True)


def live(folder: Path, database: str, function: str, arguments: dict[str, Any]) -> int:
    """Run one job in this process, and print what it returned. Returns: the exit code."""
    for number, name in ((1, "out"), (2, "errors")):
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    try:
        connection.settings_dict["NAME"] = database
        module, name = function.split(":")
        result = getattr(importlib.import_module(module), name)(**arguments)
        print(json.dumps(result), flush=True)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        connection.close()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve()
