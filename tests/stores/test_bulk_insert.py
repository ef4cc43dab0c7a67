"""Rows inserted at once raise the errors of Django, and keep every character."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from conversations.models import ConversationTombstone
from conversations.stores.sql.bulk_insert import insert_all
from tests.support.bulk import LONG_AGO

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_error_of_the_database_is_djangos_and_spoils_the_transaction_as_any_other() -> None:
    columns = ("conversation_id", "deleted_at", "reason")
    table, awkward = "conversation_tombstones", "b\\\t\n"
    with pytest.raises(IntegrityError), transaction.atomic():
        insert_all(table, columns, [("a", LONG_AGO, "x"), ("a", LONG_AGO, "x")])
    insert_all(table, columns, [(name, LONG_AGO, "x") for name in ("a", awkward)])
    insert_all(table, columns, [])
    rows = ConversationTombstone.rows.order_by("conversation_id").values_list(*columns)
    assert list(rows) == [("a", LONG_AGO, "x"), (awkward, LONG_AGO, "x")]
    seen: list[str] = []

    def wrapper(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(wrapper):
        insert_all(table, columns, [("c", LONG_AGO, "x")])
    assert len(seen) == 1
    assert table in seen[0]
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            insert_all(table, columns, [("d", LONG_AGO, "x")])
