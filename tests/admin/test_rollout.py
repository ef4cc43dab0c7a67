"""The admin of the rollout: health, processes and mismatches, for reading."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from conversations.models import ConversationMismatch, ConversationTombstone
from flags import processes, transitions
from flags.models import MeasuredMinute, ReportingProcess, Transition
from flags.phases import Phase, Switch
from flags.switches import snapshot
from tests.faults.injection import failing, touches_tables
from tests.flags.test_switches import Rows, set_rows

pytestmark = pytest.mark.django_db
HEALTH = "/admin/flags/transition/health/"
TRANSITIONS = "/admin/flags/transition/"
PROCESSES = "/admin/flags/reportingprocess/"
MISMATCHES = "/admin/conversations/conversationmismatch/"
HOSTILE = '<script>alert("host")</script>'


@pytest.fixture(autouse=True)
def _monitored(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    set_rows(Phase.DUAL_WRITE)
    monitor(on=True)


def monitor(*, on: bool) -> None:
    Rows._base_manager.update_or_create(name=Switch.PERFORMANCE_MONITORING, defaults={"active": on})
    snapshot.forget()
    transitions.status()


def staff(client: Client, *codenames: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


def text_of(response: Any) -> str:
    """Return what a page says, without its tags."""
    assert response.status_code == 200
    page = re.sub(r"<[^>]+>", " ", response.content.decode())
    return " ".join(page.split())


def process(host: str, *, epoch: int, **values: Any) -> None:
    ReportingProcess.objects.create(
        token=host[:32],
        host=host,
        epoch=epoch,
        **{"pid": 7, "version": "1.2", "phase": 1, "seen_at": timezone.now(), **values},
    )


def minute(**numbers: Any) -> None:
    now = timezone.now().replace(second=0, microsecond=0)
    MeasuredMinute.objects.create(began_at=now, operation="load", store="legacy", **numbers)


def mismatch() -> ConversationMismatch:
    return ConversationMismatch.rows.create(
        conversation_id="c1",
        seen_at=timezone.now() - timedelta(hours=1),
        phase=2,
        revision=3,
        places='["conversation_history[0].content"]',
        tables_hash="aa",
        legacy_hash="bb",
    )


def test_the_health_page_says_what_the_command_says(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", timedelta(seconds=-1))
    epoch = transitions.status().last.epoch
    process("web1", epoch=epoch)
    process("web2", epoch=epoch - 1)
    minute(count=100, errors=2)
    page = text_of(staff(client, "view_transition").get(HEALTH))
    assert "critical old_epoch 1 live processes act on an old transition: web2:7." in page
    assert "warning errors load legacy: 2.0% of 100 failed." in page
    assert "tables: answers legacy: answers" in page
    assert re.search(r"load legacy 100 0\.\d 2 0 0 0 - - -", page)
    assert re.search(rf"web1:7 1\.2 dual_write {epoch} \d\.\d web2:7", page)
    assert page.count("on an old epoch") == 1


def test_the_health_page_says_what_it_does_not_know(client: Client) -> None:
    reader = staff(client, "view_transition")
    page = text_of(reader.get(HEALTH))
    assert "Nothing is wrong." in page
    assert "No operation was measured." in page
    assert "No process reports itself." in page
    monitor(on=False)
    page = text_of(reader.get(HEALTH))
    assert "unknown not_measured performance_monitoring is off" in page
    with failing(touches_tables):
        page = text_of(reader.get(HEALTH))
    assert "tables: does not answer" in page


def test_pages_need_the_permission_to_view_their_model(client: Client) -> None:
    reader = staff(client)
    for address in (HEALTH, PROCESSES, MISMATCHES):
        assert reader.get(address).status_code == 403
    permissions = Permission.objects.filter(
        codename__in=["view_reportingprocess", "view_conversationmismatch"]
    )
    User.objects.get(username="staff").user_permissions.set(permissions)
    assert [reader.get(a).status_code for a in (HEALTH, PROCESSES, MISMATCHES)] == [403, 200, 200]
    client.logout()
    assert client.get(HEALTH).status_code == 302


def test_the_list_of_transitions_leads_to_health(client: Client) -> None:
    response = staff(client, "view_transition").get(reverse("admin:flags_transition_changelist"))
    assert f'href="{HEALTH}"' in response.content.decode()
    assert client.post(HEALTH).status_code == 405


@pytest.mark.django_db(transaction=True)
def test_the_list_of_transitions_shows_a_long_reason_in_part_and_its_page_all_of_it(
    client: Client,
) -> None:
    reason = "because " * 40 + "of the weekend"
    made = transitions.canary(12.5, reason=reason, actor="someone")
    reader = staff(client, "view_transition")
    page = reader.get(TRANSITIONS)
    assert f"dual_write to dual_write for 12.5 % someone {'because ' * 15}…" in text_of(page)
    assert "of the weekend" not in text_of(page)
    row = reverse("admin:flags_transition_change", args=[made.epoch])
    assert reason in text_of(reader.get(row))
    transitions.canary(100, reason="short", actor="someone")
    assert "dual_write to dual_write someone short" in text_of(reader.get(TRANSITIONS))


@pytest.mark.parametrize(
    ("address", "sheet", "cell"),
    [
        (TRANSITIONS, "flags/transitions.css", "field-why"),
        ("/admin/conversations/conversationtombstone/", "flags/reading.css", "field-reason"),
    ],
)
def test_a_reason_wraps_in_a_list_instead_of_going_on_behind_the_filters(
    address: str, sheet: str, cell: str, client: Client
) -> None:
    ConversationTombstone.rows.create(
        conversation_id="c", reason="a reason", deleted_at=timezone.now()
    )
    client.force_login(User.objects.create_superuser("root"))
    page = client.get(address).content.decode()
    assert f'<td class="{cell}">' in page
    assert f'href="/static/{sheet}"' in page
    found = finders.find(sheet)
    assert isinstance(found, str)
    rules = re.findall(r"([^{}]*)\{([^}]*)\}", Path(found).read_text())
    (rule,) = [body for selector, body in rules if selector.strip().endswith(f".{cell}")]
    assert "overflow-wrap: anywhere;" in rule
    assert "max-width:" in rule


def test_processes_are_listed_with_what_they_act_on(client: Client) -> None:
    epoch = transitions.status().last.epoch
    process("web1", epoch=epoch)
    process("web2", epoch=epoch - 1, phase=0)
    reader = staff(client, "view_reportingprocess")
    response = reader.get(PROCESSES)
    page = text_of(response)
    assert re.search(rf"web1 7 1\.2 dual_write {epoch} ", page)
    assert re.search(rf"web2 7 1\.2 legacy {epoch - 1} ", page)
    icons = re.findall(r"icon-(yes|no)\.svg", response.content.decode())
    assert icons == ["yes", "no"]
    row = ReportingProcess.objects.get(host="web1")
    one = reader.get(f"{PROCESSES}{row.pk}/change/")
    assert "web1" in text_of(one)


def test_a_mismatch_says_where_and_not_what(client: Client) -> None:
    row = mismatch()
    reader = staff(client, "view_conversationmismatch")
    assert f"{row.pk} c1 new_reads 3" in text_of(reader.get(MISMATCHES))
    assert "c1" in text_of(reader.get(MISMATCHES, {"q": "c1"}))
    assert "c1 new_reads" not in text_of(reader.get(MISMATCHES, {"q": "c"}))
    page = text_of(reader.get(f"{MISMATCHES}{row.pk}/change/"))
    assert "conversation_history[0].content" in page


@pytest.mark.parametrize("model", [ReportingProcess, Transition])
def test_nothing_is_added_changed_or_deleted(client: Client, model: Any) -> None:
    process("web1", epoch=1)
    client.force_login(User.objects.create_superuser("root"))
    name = f"admin:flags_{model._meta.model_name}"
    pk = model.objects.first().pk
    assert client.get(reverse(f"{name}_add")).status_code == 403
    assert client.post(reverse(f"{name}_change", args=[pk]), {}).status_code == 403
    assert client.post(reverse(f"{name}_delete", args=[pk]), {"post": "yes"}).status_code == 403
    assert "delete_selected" not in client.get(reverse(f"{name}_changelist")).content.decode()
    assert model.objects.filter(pk=pk).exists()


def test_no_list_takes_more_than_ten_queries(
    client: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(30):
        process(f"web{number}", epoch=1)
        mismatch()
    reader = staff(client, "view_reportingprocess", "view_conversationmismatch")
    for address in (PROCESSES, MISMATCHES):
        with django_assert_max_num_queries(10):
            assert reader.get(address).status_code == 200


def test_pages_run_nothing_and_have_no_inline_style(client: Client) -> None:
    process(HOSTILE, epoch=0)
    mismatch()
    minute(count=100, errors=2)
    client.force_login(User.objects.create_superuser("root"))
    for address in (HEALTH, PROCESSES, MISMATCHES, TRANSITIONS):
        page = client.get(address).content.decode()
        assert re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page) is None
        assert HOSTILE not in page
        assert ("alert" in page) == (address in (HEALTH, PROCESSES))
    assert "flags/health.css" in client.get(HEALTH).content.decode()
    assert finders.find("flags/health.css")


@pytest.mark.parametrize("value", ["abc", "-1", "9" * 30, "", "\x00", "1;DROP"])
def test_bad_parameters_never_raise(client: Client, value: str) -> None:
    process("web1", epoch=1)
    mismatch()
    client.force_login(User.objects.create_superuser("root"))
    for address in (HEALTH, PROCESSES, MISMATCHES):
        for name in ("p", "o", "q", "all", "nonsense", "seen_at__gte"):
            # A column that the list has no filter for.
            refused = (address, name) == (PROCESSES, "seen_at__gte")
            status = client.get(address, {name: value}, follow=True).status_code
            assert status == (400 if refused else 200)
