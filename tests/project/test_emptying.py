"""What a test has committed is gone after it, as after Django's own flush."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import TransactionTestCase
from waffle.models import Switch

from conversations.storage import save_state
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support import emptying
from tests.support.factories import UserFactory, state

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[TransactionTestCase]:
    """What Django's flush was called for; none was until now."""
    called: list[TransactionTestCase] = []
    flush = emptying._flush
    monkeypatch.setattr(emptying, "_flushed", {})
    monkeypatch.setattr(emptying, "_flush", lambda case: (called.append(case), flush(case)))
    return called


def save() -> None:
    """Write to tables of several apps, with references from one to the other."""
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", memory_context=[{"content": "x"}]), UserFactory().pk)


def test_only_the_first_time_it_takes_a_flush(flushes: list[TransactionTestCase]) -> None:
    case = TransactionTestCase()
    case._fixture_teardown()
    left = emptying._everything(connection)
    assert {table for table, rows in left.items() if rows} == {
        "auth_permission",
        "django_content_type",
        "waffle_switch",
    }
    save()
    Switch.objects.filter(active=True).update(active=False)
    Switch.objects.all()[0].delete()
    Switch.objects.create(name="another", active=True)
    Permission.objects.all()[0].delete()
    assert emptying._everything(connection) != left
    case._fixture_teardown()
    assert emptying._everything(connection) == left
    assert len(flushes) == 1


def test_a_table_that_is_missing_takes_a_flush(flushes: list[TransactionTestCase]) -> None:
    case = TransactionTestCase()
    case._fixture_teardown()
    left = emptying._everything(connection)
    save()
    emptying._flushed[emptying._name(connection)]["nowhere"] = []
    case._fixture_teardown()
    assert len(flushes) == 2
    assert emptying._everything(connection).keys() == left.keys()
    assert not emptying._everything(connection)["conversation_states"]


def test_statistics_of_a_test_go_with_it(flushes: list[TransactionTestCase]) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite keeps statistics in a table of its own, if at all")
    case = TransactionTestCase()
    case._fixture_teardown()
    save()
    with connection.cursor() as cursor:
        assert not emptying._grown(cursor, ["conversation_states"])
        cursor.execute("ANALYZE conversation_states")
        assert emptying._grown(cursor, ["conversation_states"])
        case._fixture_teardown()
        assert not emptying._grown(cursor, ["conversation_states"])
    assert len(flushes) == 2
