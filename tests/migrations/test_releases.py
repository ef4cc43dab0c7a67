"""Each release's schema works with the previous release's code: migrations only add."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED
from django.test.utils import isolate_apps

# What the first release brings: no code was there before it.
FIRST = {
    ("conversations", "0001_create_conversation_tables"),
    ("conversations", "0002_create_sync_tables"),
    ("flags", "0001_create_rollout_tables"),
    ("memory", "0001_adopt_or_create_memory_tables"),
    ("memory", "0002_index_memory_tables"),
}
# What takes away or renames what the previous release still names.
TAKING = (
    migrations.RemoveField,
    migrations.RenameField,
    migrations.DeleteModel,
    migrations.RenameModel,
    migrations.AlterModelTable,
)


def problems_of(operation: Any) -> list[str]:
    """Return why the previous release's code would fail on a schema behind an operation."""
    if isinstance(operation, migrations.SeparateDatabaseAndState):
        return [text for one in operation.database_operations for text in problems_of(one)]
    if isinstance(operation, TAKING):
        return [f"{operation.describe()}: drop it one release later than its last use."]
    if isinstance(operation, migrations.AddField | migrations.AlterField):
        field = operation.field
        if not field.null and not field.many_to_many and field.db_default is NOT_PROVIDED:
            return [f"{operation.describe()}: make it nullable, or give it a db_default."]
    return []


def test_later_migrations_only_add() -> None:
    loader = MigrationLoader(None)
    ours = {"conversations", "flags", "memory"}
    later = {key: found for key, found in loader.disk_migrations.items() if key[0] in ours}
    assert set(later) >= FIRST
    found = {
        key: [text for operation in later[key].operations for text in problems_of(operation)]
        for key in set(later) - FIRST
    }
    assert {key: texts for key, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    ("operation", "refused"),
    [
        (migrations.AddField("m", "f", models.IntegerField(default=0)), True),
        (migrations.AddField("m", "f", models.IntegerField(db_default=0)), False),
        (migrations.AddField("m", "f", models.IntegerField(null=True)), False),
        (migrations.AlterField("m", "f", models.IntegerField()), True),
        (migrations.RemoveField("m", "f"), True),
        (migrations.RenameField("m", "f", "g"), True),
        (
            migrations.SeparateDatabaseAndState(
                database_operations=[migrations.DeleteModel("m")], state_operations=[]
            ),
            True,
        ),
        (
            migrations.SeparateDatabaseAndState(
                database_operations=[], state_operations=[migrations.DeleteModel("m")]
            ),
            False,
        ),
        (migrations.CreateModel("m", [("f", models.IntegerField())]), False),
    ],
)
def test_an_operation_that_removes_or_lacks_a_default_in_the_database_is_refused(
    operation: Any, refused: bool
) -> None:
    assert bool(problems_of(operation)) is refused


@pytest.mark.django_db(transaction=True)
@isolate_apps("tests")
def test_a_default_of_django_is_none_of_the_database() -> None:
    """Why the rule is there: an INSERT that does not name the column fails."""

    class Model(models.Model):
        class Meta:
            app_label = "releases"
            db_table = "releases_model"

        def __str__(self) -> str:
            return "a model"

    with connection.schema_editor() as editor:
        editor.create_model(Model)
    try:
        for name, field, works in (
            ("given", models.IntegerField(db_default=1), True),
            ("filled", models.IntegerField(default=1), False),
        ):
            field.set_attributes_from_name(name)
            field.model = Model
            with connection.schema_editor() as editor:
                editor.add_field(Model, field)
            with connection.cursor() as cursor:
                if works:
                    cursor.execute("INSERT INTO releases_model (id) VALUES (1)")
                    continue
                with pytest.raises(Exception, match=r"(?i)not.null"):
                    cursor.execute("INSERT INTO releases_model (id) VALUES (2)")
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Model)
