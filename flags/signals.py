"""The reactions of `flags` to a change of the switches and to a migration."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import connections, transaction
from django.db.models.signals import post_delete, post_migrate, post_save
from waffle import get_waffle_sample_model, get_waffle_switch_model

from flags.conf import database_alias, default_switches
from flags.phases import HELP_TEXTS, Switch
from flags.switches import snapshot


def connect() -> None:
    """Connect the receivers; called once from `FlagsConfig.ready`."""
    model = get_waffle_switch_model()
    for signal in (post_save, post_delete):
        for sender in (model, get_waffle_sample_model()):
            uid = f"flags.forget.{sender.__name__}.{id(signal)}"
            signal.connect(_forget, sender=sender, dispatch_uid=uid)
    # Django sends the signal for each app with models. At waffle's turn, waffle's table exists.
    owner = apps.get_app_config(model._meta.app_label)
    post_migrate.connect(create_switches, sender=owner, dispatch_uid="flags.create_switches")


def _forget(sender: Any, **kwargs: Any) -> None:
    """Read the switches anew at once, and again when the change is committed."""
    snapshot.clear()
    transaction.on_commit(snapshot.clear, using=database_alias())


def create_switches(sender: Any, using: str, **kwargs: Any) -> None:
    """Create the rows of the switches after a migration, so that the admin has rows to toggle.

    Existing rows stay.
    """
    if using != database_alias():
        return
    rows = get_waffle_switch_model()._base_manager.using(using)
    if rows.model._meta.db_table not in connections[using].introspection.table_names():
        return
    for switch, active in default_switches().items():
        rows.get_or_create(
            name=switch, defaults={"active": active, "note": HELP_TEXTS[Switch(switch)]}
        )
    snapshot.clear()
