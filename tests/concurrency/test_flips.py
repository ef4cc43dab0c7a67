"""A flip is in force in every process within a second, under any cache of waffle."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from flags.phases import Phase
from flags.switches import current_plan
from tests.flags.test_fence import until_true
from tests.flags.test_switches import Rows, set_rows
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

PROCESSES = 4
# With each cache; more than a hundred in a long run.
FLIPS = max(4, examples(12))
REDIS = ("127.0.0.1", 6379)
CACHES = {
    "local memory": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "TIMEOUT": None},
    "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cached"},
    "redis": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://{REDIS[0]}:{REDIS[1]}/9",
    },
}


def watch(cache: dict[str, Any], seen: str, until: str) -> int:
    """Note in a file which phase is in force, as an operation would find it. Returns: changes."""
    path, changes, last = Path(seen), 0, None
    with override_settings(CACHES={"default": cache}):
        while not Path(until).exists():
            phase = current_plan().phase.label
            if phase != last:
                last, changes = phase, changes + 1
                # A reader must never find half a word.
                path.with_suffix(".new").write_text(phase)
                path.with_suffix(".new").replace(path)
            threading.Event().wait(0.005)
    return changes


def there_is_redis() -> bool:
    try:
        socket.create_connection(REDIS, timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", CACHES)
def test_a_flip_is_in_force_in_every_process_within_a_second(tmp_path: Path, name: str) -> None:
    if name == "redis" and not there_is_redis():
        pytest.skip("no Redis runs here")
    set_rows(Phase.DUAL_WRITE)
    until = tmp_path / "done"
    files = [tmp_path / f"seen-{number}" for number in range(PROCESSES)]
    took = []
    with override_settings(CACHES={"default": CACHES[name]}):
        if name == "database":
            call_command("createcachetable", verbosity=0)
        processes = [
            start(
                Job(
                    "tests.concurrency.test_flips:watch",
                    {"cache": CACHES[name], "seen": str(file), "until": str(until)},
                )
            )
            for file in files
        ]

        def all_see(phase: Phase) -> bool:
            return all(file.exists() and file.read_text() == phase.label for file in files)

        try:
            until_true(lambda: all_see(Phase.DUAL_WRITE))
            for flip in range(FLIPS):
                row = Rows._base_manager.get(name="use_new_load")
                row.active = flip % 2 == 0
                started = time.monotonic()
                if flip % 4 < 2:
                    row.save()
                else:
                    # Behind waffle's back: no signal, and no cache is told.
                    Rows._base_manager.filter(pk=row.pk).update(active=row.active)
                wanted = Phase.NEW_READS if row.active else Phase.DUAL_WRITE
                until_true(lambda: all_see(wanted))  # noqa: B023
                took.append(time.monotonic() - started)
        finally:
            until.touch()
            changes = [result_of(process) for process in processes]
    assert changes == [FLIPS + 1] * PROCESSES
    # One in twenty may have met a machine that had other things to do.
    assert sorted(took)[len(took) * 19 // 20] < 1, sorted(took)
