"""The phases that write both stores, against each store alone; legacy in either of its forms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.db import connection, models

from config.bench.playing import add, begun, check
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.short import Timed
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import Api
from flags.phases import Phase

SAVE_BAR, LOAD_BAR = 1.35, 1.5
DUAL = (Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY)


class Blob(models.Model):
    """A host's own table of states, one row each, as a JSONFieldStore is told of it."""

    conversation_id = models.CharField(max_length=255, unique=True)
    user_id = models.CharField(max_length=64, null=True)
    state = models.JSONField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "config"
        # Of the bench's own databases: no migration makes it.
        managed = False
        db_table = "bench_blobs"

    def __str__(self) -> str:
        return self.conversation_id


LEGACY: dict[str, Any] = {
    "chunks": "memory_chunks",
    "JSON row": {
        "model": "config.Blob",
        "conversation_id": "conversation_id",
        "owner": "user_id",
        "state": "state",
    },
}


def play(run: Run) -> Results:
    """Play the same turns in all five phases, with either legacy store."""
    results = Results("dual")
    series: Timed = defaultdict(Series)
    populated(beside=True)
    with _blobs():
        ways = [
            Api(f"{store}: {phase.label}", _settings(run, legacy), phase)
            for store, legacy in LEGACY.items()
            for phase in Phase
        ]
        order = rotations(ways)
        with settled_heap():
            for number, turns in enumerate(run.material.played(run.rounds)):
                for step, turn in enumerate(turns, start=1):
                    for way in next(order):
                        key = f"bench-dual-{number}-{way.name}"
                        with way.taken():
                            if step == 1:
                                way.create(key, run.owner, begun(turn))
                                continue
                            # See `config.bench.short`.
                            way.load(key, run.owner)
                            state, _ = series["load", way.name].timed(way.load, key, run.owner)
                            add(state, turn, step)
                            saved = series["save", way.name]
                            saved.timed(way.save, key, run.owner, state, turn, None)
                messages = [message for turn in turns for message in turn]
                for way in ways:
                    key = f"bench-dual-{number}-{way.name}"
                    check(results, way, key, messages, owner=run.owner, ordered=False)
    for operation in ("save", "load"):
        for way in ways:
            results.add(operation, way.name, series[operation, way.name], None)
    for store in LEGACY:
        _compare(results, store)
    return results


def _settings(run: Run, legacy: Any) -> dict[str, Any]:
    # A shadow read is a second load; what it costs is not a phase's.
    return {"LEGACY": legacy, "SHADOW_SHARE": 0, "PREPARE_STATEMENTS": run.prepare}


@contextmanager
def _blobs() -> Iterator[None]:
    with connection.schema_editor() as editor:
        editor.create_model(Blob)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Blob)


def _compare(results: Results, store: str) -> None:
    alone = sum(
        results.median("save", f"{store}: {phase.label}")
        for phase in (Phase.LEGACY, Phase.NEW_ONLY)
    )
    tables = results.median("load", f"{store}: {Phase.NEW_ONLY.label}")
    for phase in DUAL:
        name = f"{store}: {phase.label}"
        saved = results.median("save", name)
        results.say(f"save: {name} / (legacy + new_only)", saved / alone, bar=SAVE_BAR)
    for phase in DUAL:
        name = f"{store}: {phase.label}"
        loaded = results.median("load", name)
        results.say(f"load: {name} / new_only", loaded / tables, bar=LOAD_BAR)
