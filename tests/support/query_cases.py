"""The queries of every operation, and the indexes by which each finds its rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import override_settings
from django.utils import timezone

from conversations import storage
from conversations.admin.legacy import legacy_page
from conversations.models import ConversationState
from conversations.rollout import findings
from conversations.rollout.gates import traffic
from conversations.rollout.verification import unverified
from conversations.routing.ids import in_batches, out_of_step
from conversations.stores import registry
from conversations.writing import retention
from conversations.writing.delete import delete_all_of
from flags import health, metrics
from flags.admin.rights import rights_of
from flags.gates import Step
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryMetadata
from tests.support import populated
from tests.support.factories import message, messages, state
from tests.support.plans import uses_of

# These have a row for each step or run that an operator made: they stay small.
SMALL = {"rollout_transitions", "rollout_processes", "sync_runs"}

NAME = "subject"

# Stands in both stores; the other one in the tables alone.
TWICE = "subject twice"

FRESH = {"REQUIRE_OWNER": False}

CHUNKS = {"LEGACY": "memory_chunks"}


def saved_twice() -> None:
    """Save a conversation that stands in both stores."""
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(Phase.DUAL_WRITE):
        for count in (1, 2, 3):
            storage.save_state(TWICE, state(*range(count)), owner())


def save_subject() -> None:
    """Save a conversation with some of everything; statistics know nothing of it."""
    user = owner()
    items = [{"content": f"item {number}", "relevance_score": 0.5} for number in range(50)]
    storage.save_state(NAME, state(*range(150), memory_context=items), user)
    tool = {"role": "tool", "tool_name": "search", "content": "found"}
    storage.append_messages(NAME, [tool], keys=["found"])
    storage.replace_message(NAME, 5, message("edited"))
    storage.remove_messages(NAME, [6])
    row = ConversationState.rows.get(conversation_id=NAME)
    MemoryMetadata.objects.create(conversation=row, key="channel", value="web")


def owner() -> User:
    user: User = User.objects.filter(username__startswith="crowd").order_by("pk")[0]
    return user


def found_by(call: Callable[[], Any], *, generic: bool = False) -> set[str]:
    """Return the indexes, walks and scans of a call; rows found by primary key are fine."""
    found = uses_of(call, generic=generic)
    return {use for use in found if "pk of " not in use and use.removeprefix("scan ") not in SMALL}


@dataclass(frozen=True)
class Case:
    """A call, and the indexes by which it finds what it needs.

    "a|b" is one or the other, "a?" may be left out: databases differ. "walk a" reads an index in
    its order from one end.
    """

    name: str
    call: Callable[[], Any]
    indexes: str

    def __str__(self) -> str:
        return self.name

    def problems(self, found: set[str]) -> list[str]:
        """Return what is not as it is meant."""
        said = re.sub(r"(walk|scan) ", r"\1_", self.indexes)
        wanted = [set(re.sub("[_](?<=walk_|scan_)", " ", one).split("|")) for one in said.split()]
        meant = {name.rstrip("?") for each in wanted for name in each}
        return [f"{use} is not meant" for use in sorted(found - meant)] + [
            f"{' or '.join(each)} is not used"
            for each in wanted
            if not each & found and not any(name.endswith("?") for name in each)
        ]


def second_page(user: Any) -> Any:
    first = storage.list_conversations(user, limit=5)
    return storage.list_conversations(user, before=first.next, limit=5)


ROW = "state_conversation_id"

MESSAGES = "message_current_sequence"

ITEMS = "item_by_position metadata_context_item_key"

GONE = "tombstone_conversation_id"

# What a team without legacy calls; one with tables only.
TABLES = [
    Case("load", lambda: storage.load_state(NAME), f"{ROW} {MESSAGES} {ITEMS}"),
    Case(
        "load the latest of the best",
        lambda: storage.load_state(NAME, 0.4, max_messages=5, max_context_items=3),
        f"{ROW} {MESSAGES} {ITEMS}",
    ),
    Case("load nothing", lambda: storage.load_state("nobody"), f"{ROW} {GONE} {MESSAGES}"),
    Case("save anew", lambda: storage.save_state("new", state("a"), owner()), f"{ROW} {GONE}"),
    Case(
        "save without having loaded",
        lambda: storage.save_state(NAME, state("a", memory_context=[{"content": "b"}])),
        f"{ROW} {MESSAGES} {ITEMS} message_version",
    ),
    Case("append", lambda: storage.append_messages(NAME, messages("a")), ROW),
    Case(
        "append with keys",
        lambda: storage.append_messages(NAME, messages("a"), keys=["new"]),
        f"{ROW} message_current_key message_superseded",
    ),
    Case(
        "append a key again",
        lambda: storage.append_messages(
            NAME,
            [{"role": "tool", "tool_name": "search", "content": "found"}],
            keys=["found"],
        ),
        f"{ROW} message_current_key message_superseded",
    ),
    Case(
        "append, creating",
        lambda: storage.append_messages("new", messages("a"), keys=["k"], create=True),
        f"{ROW} {GONE} message_current_key? message_superseded?",
    ),
    Case(
        "replace a message",
        lambda: storage.replace_message(NAME, "found", message("b")),
        f"{ROW} message_current_key {MESSAGES}|message_version",
    ),
    Case(
        "remove messages",
        lambda: storage.remove_messages(NAME, last=2),
        f"{ROW} {MESSAGES} message_version?",
    ),
    Case(
        "remove messages by key and sequence",
        lambda: storage.remove_messages(NAME, ["found", 8]),
        f"{ROW} {MESSAGES}|message_version message_current_key message_version?",
    ),
    Case(
        "restore a message",
        lambda: storage.restore_message(NAME, 6),
        f"{ROW} {MESSAGES} message_version message_successor",
    ),
    Case(
        "restore a version",
        lambda: storage.restore_message(NAME, 5),
        f"{ROW} {MESSAGES} message_version message_successor",
    ),
    Case(
        "redact a message",
        lambda: storage.redact_message(NAME, 8),
        f"{ROW} message_version state_by_origin conflict_by_revision",
    ),
    Case(
        "clear",
        lambda: storage.clear_conversation(NAME),
        f"{ROW} {MESSAGES} {ITEMS} message_version",
    ),
    Case(
        "change some fields",
        lambda: storage.update_state_partial(
            NAME, {"new_messages": messages("a"), "new_context_items": [{"content": "b"}]}
        ),
        f"{ROW} {ITEMS}",
    ),
    Case(
        "fork",
        lambda: storage.fork_conversation(NAME, 10),
        f"{ROW} {GONE} {MESSAGES} {ITEMS}",
    ),
    Case("claim", lambda: storage.claim_conversation(NAME, owner()), ROW),
    Case(
        "list a user's conversations",
        lambda: storage.list_conversations(owner()),
        "state_by_user state_by_legacy_user",
    ),
    Case(
        "list more of them",
        lambda: second_page(owner()),
        "state_by_user state_by_legacy_user",
    ),
    Case(
        "list those of an owner in legacy",
        lambda: storage.list_conversations(900_020),
        "state_by_user state_by_legacy_user",
    ),
    Case("list everybody's", lambda: storage.list_conversations(None), "walk state_by_activity"),
    Case(
        "list more of everybody's",
        lambda: second_page(None),
        "walk state_by_activity state_by_activity",
    ),
    Case(
        "the latest conversation",
        lambda: storage.get_conversation_id(owner()),
        "state_by_user state_by_legacy_user",
    ),
    Case(
        "when it was active",
        lambda: storage.get_conversation_timestamp(owner(), NAME),
        ROW,
    ),
    Case("whether it exists", lambda: storage.conversation_exists(NAME), f"{ROW} {GONE}"),
    Case("list messages", lambda: storage.list_messages(NAME), f"{ROW} {MESSAGES}"),
    Case(
        "list earlier messages",
        lambda: storage.list_messages(NAME, before=50),
        f"{ROW} {MESSAGES}|message_version",
    ),
    Case(
        "list later messages",
        lambda: storage.list_messages(NAME, after=50),
        f"{ROW} {MESSAGES}|message_version",
    ),
    Case(
        "list messages of some roles",
        lambda: storage.list_messages(NAME, roles=["tool", "user"]),
        f"{ROW} {MESSAGES}",
    ),
    Case(
        "list messages of a tool",
        lambda: storage.list_messages(NAME, tool_name="search"),
        f"{ROW} {MESSAGES}",
    ),
    Case(
        "list superseded messages",
        lambda: storage.list_messages(NAME, include_superseded=True),
        f"{ROW} message_version",
    ),
    Case(
        "delete",
        lambda: storage.delete_conversation(NAME),
        f"{ROW} {GONE} {ITEMS} message_version metadata_conversation_key"
        " metadata_message_key|walk metadata_message_key conflict_by_revision redaction_text"
        " state_by_origin",
    ),
    Case(
        "find what to delete of a user",
        lambda: delete_all_of("-1"),
        "state_by_user state_by_legacy_user",
    ),
    Case(
        "prune one",
        lambda: list(retention.prune([NAME], dry_run=True)),
        f"{ROW} message_superseded|message_version",
    ),
    Case(
        "find what to prune", lambda: next(retention._with_superseded(None)), "message_superseded"
    ),
]

# Where the state blobs of a conversation are.
BLOBS = "metadata_conversation_chunk metadata_by_chunk"

# What a team that migrates calls, beside the legacy chunks; in new_only, and in dual_write.
BESIDE_CHUNKS = [
    (
        Case("load", lambda: storage.load_state(NAME), f"{ROW} {MESSAGES} {ITEMS} {BLOBS}"),
        Case(
            "load",
            lambda: storage.load_state(NAME),
            f"{ROW} {MESSAGES}|message_version {ITEMS} {BLOBS} message_superseded?",
        ),
    ),
    (
        Case("load either", lambda: storage.load_state(TWICE), f"{ROW} {MESSAGES} {BLOBS}"),
        Case("load either", lambda: storage.load_state(TWICE), f"{ROW} {BLOBS}"),
    ),
    (
        Case(
            "load nothing", lambda: storage.load_state("nobody"), f"{ROW} {MESSAGES} {GONE} {BLOBS}"
        ),
        Case("load nothing", lambda: storage.load_state("nobody"), f"{ROW} {GONE} {BLOBS}"),
    ),
    (
        Case(
            "load what was not moved yet",
            lambda: storage.load_state("unmoved-7"),
            f"{ROW} {MESSAGES} {GONE} {BLOBS}",
        ),
        Case(
            "load what was not moved yet",
            lambda: storage.load_state("unmoved-7"),
            f"{ROW} {GONE} {BLOBS}",
        ),
    ),
    (
        Case("append", lambda: storage.append_messages(NAME, messages("a")), f"{ROW} {BLOBS}"),
        Case(
            "append",
            lambda: storage.append_messages(NAME, messages("a")),
            f"{ROW} {MESSAGES} {ITEMS} {BLOBS}",
        ),
    ),
    (
        Case("save anew", lambda: storage.save_state("new", state("a")), f"{ROW} {GONE} {BLOBS}"),
        Case("save anew", lambda: storage.save_state("new", state("a")), f"{ROW} {GONE} {BLOBS}"),
    ),
    (
        Case("list messages", lambda: storage.list_messages(NAME), f"{ROW} {MESSAGES} {BLOBS}"),
        Case("list messages", lambda: storage.list_messages(NAME), f"{ROW} {MESSAGES} {BLOBS}"),
    ),
]


def step() -> Step:
    now = timezone.now()
    return Step(Phase.NEW_READS, Phase.DUAL_WRITE, now, now)


LATER = timedelta(minutes=10)

# What a rollout asks, the first three of them while writes are held back. A scan is made once a
# step, or by an operator, while no request waits for it; or it reads the metadata of all
# chunks, because legacy has no row for a conversation, where that is small.
ROLLOUT = [
    Case("what changed", lambda: list(in_batches(unverified())), "state_unsettled"),
    Case(
        "where legacy is behind",
        lambda: traffic.legacy_current(step()),
        # It counts what is more than it names: of a crowd this small, perhaps in the table.
        "state_unsettled scan conversation_states?",
    ),
    Case(
        "what came into legacy",
        lambda: list(legacy().ids_written_since(str(int(legacy().mark()) - 5))),
        "metadata_by_chunk metadata_conversation_chunk?",
    ),
    Case(
        "where the stores are out of step",
        lambda: list(out_of_step()),
        f"{ROW} {BLOBS} scan memory_metadata?",
    ),
    Case(
        "a batch of a sync",
        lambda: (
            legacy().key_after(10, 2000, count=50),
            # In the middle: before the first ones, all blobs are few enough to be looked through.
            legacy().ids_between(1000, 1050, settled=timezone.now()),
        ),
        f"{BLOBS} scan memory_metadata?",
    ),
    Case(
        "who writes into legacy",
        lambda: traffic.foreign_writes(step()),
        "scan conversation_states",
    ),
    Case(
        "findings",
        lambda: findings.findings(),
        f"{BLOBS} sync_batch_of_run {GONE}? walk chunk_by_user? walk chunk_by_time?"
        " walk metadata_conversation_chunk?"
        " scan conversation_conflicts scan memory_chunks? scan memory_metadata"
        " scan conversation_tombstones?",
    ),
    Case(
        "what was measured",
        lambda: metrics.totals(populated.FIRST, populated.FIRST + LATER),
        "measure_minute",
    ),
    Case(
        "what is too old",
        lambda: metrics.prune(now=populated.FIRST + metrics.KEPT + LATER),
        "measure_minute",
    ),
    Case(
        "health",
        lambda: health.report(),
        f"{MESSAGES}|message_version item_by_position {BLOBS} mismatch_by_time"
        " measure_minute? scan conversation_conflicts?",
    ),
    Case("the ids in legacy", lambda: legacy().ids(after="crowd-3", limit=50), BLOBS),
]

# Of an owner: of so small a crowd, PostgreSQL may look through all that names a conversation.
OWNED = f"{BLOBS} chunk_by_user chunk_by_time? walk metadata_conversation_chunk?"

BOTH = f"{ROW} {GONE}"


def listed_in_legacy(cursor: str = "") -> Any:
    """Return a page of the admin's list, for a host that hides nothing of it."""
    return legacy_page(rights_of(admin.site, HttpRequest()), cursor=cursor)


LISTS = [
    Case(
        "list a user's conversations",
        lambda: storage.list_conversations(owner()),
        f"{BOTH} {OWNED} state_by_user state_by_legacy_user",
    ),
    Case(
        "list more of them",
        lambda: second_page(owner()),
        f"{BOTH} {OWNED} state_by_user state_by_legacy_user",
    ),
    Case(
        "the latest conversation",
        lambda: storage.get_conversation_id(owner()),
        f"{BOTH} {OWNED} state_by_user state_by_legacy_user",
    ),
    Case(
        "list everybody's",
        lambda: storage.list_conversations(None),
        f"{BOTH} {BLOBS} chunk_by_time walk state_by_activity",
    ),
    Case(
        "list more of everybody's",
        lambda: second_page(None),
        f"{BOTH} {BLOBS} chunk_by_time walk state_by_activity state_by_activity",
    ),
    Case("list legacy", lambda: listed_in_legacy(), f"{BOTH} {BLOBS} chunk_by_time"),
    Case(
        "list more of legacy",
        lambda: listed_in_legacy(listed_in_legacy().next or ""),
        f"{BOTH} {BLOBS} chunk_by_time",
    ),
]


def legacy() -> Any:
    return registry.configured_store()
