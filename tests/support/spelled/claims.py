"""What holds in that host. Run by `tests.stores.test_owner_spellings`, with Django's own runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from django.conf import settings
from django.db import connection
from django.test import TransactionTestCase

from conversations import storage
from conversations.exceptions import ConversationNotFound
from conversations.formats import export_lines, import_lines
from conversations.models import ConversationConflict, ConversationState, ConversationTombstone
from conversations.rollout.sync import sync
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.spelled.models import Member

SPELLINGS = ("Ann", "ann", "ANN")
LEGACY = bool(settings.CONVERSATIONS)


class Host(TransactionTestCase):
    def setUp(self) -> None:
        self.ann = Member.objects.create(name="Ann")
        self.bob = Member.objects.create(name="Bob")

    def phases(self) -> Iterator[str]:
        """Yield the name of each phase that this host can be in, which is in force then."""
        for phase in Phase if LEGACY else [Phase.NEW_ONLY]:
            with forced_phase(phase) if LEGACY else nullcontext():
                yield phase.label


class Claims(Host):
    def test_another_spelling_names_the_same_owner(self) -> None:
        for name in self.phases():
            for first in SPELLINGS:
                for second in SPELLINGS:
                    c = f"{name} {first} {second}"
                    storage.save_state(c, state("a"), first)
                    storage.append_messages(c, messages("b"), user_id=second)
                    loaded = storage.load_state(c, user_id=second)
                    assert texts(loaded) == ["a", "b"]
                    loaded.conversation_history += messages("c")
                    storage.save_state(c, loaded, second)
                    assert texts(storage.load_state(c, user_id=first)) == ["a", "b", "c"]
                    page = storage.list_messages(c, user_id=second)
                    assert len(page.messages) == 3
                    listed = [one.conversation_id for one in storage.list_conversations(second)]
                    assert (listed, storage.get_conversation_id(second)) == ([c], c)
                    assert storage.get_conversation_timestamp(second, c) is not None
                    assert storage.conversation_exists(c, user_id=second)
                    made = storage.fork_conversation(c, user_id=second)
                    assert texts(storage.load_state(made, user_id=first)) == [*"abc"]
                    assert storage.delete_conversation(made, second)
                    assert storage.delete_conversation(c, second)
                    assert not storage.delete_conversation(c, first)

    def test_other_owners_neither_see_nor_change_it(self) -> None:
        for name in self.phases():
            storage.save_state(name, state("a"), "ann")
            for other in ("Bob", "bob", "Ann ", "Änn"):
                assert texts(storage.load_state(name, user_id=other)) == []
                assert list(storage.list_conversations(other)) == []
                assert not storage.delete_conversation(name, other)
                with pytest.raises(ConversationNotFound):
                    storage.append_messages(name, messages("b"), user_id=other)
                with pytest.raises(ConversationNotFound):
                    storage.save_state(name, state("b"), other)
            assert texts(storage.load_state(name, user_id="ANN")) == ["a"]

    def test_a_user_is_deleted_with_everything_however_it_was_spelled(self) -> None:
        names = []
        for name in self.phases():
            for spelling in SPELLINGS:
                names.append(f"{name} {spelling}")
                storage.save_state(names[-1], state("a"), spelling)
            storage.save_state(f"{name} bob", state("a"), "bob")
        Member.objects.get(pk="aNN").delete()
        buried = ConversationTombstone.rows.values_list("conversation_id", flat=True)
        assert set(buried) == set(names)
        assert not ConversationState.rows.filter(user_id="Ann").exists()
        assert not MemoryChunk.objects.filter(user_id="Ann").exists()
        for name in self.phases():
            assert texts(storage.load_state(f"{name} bob", user_id="Bob")) == ["a"]

    def test_an_export_is_taken_in_again_in_another_spelling(self) -> None:
        with forced_phase(Phase.NEW_ONLY) if LEGACY else nullcontext():
            storage.save_state("c", state("a"), "Ann")
            ConversationState.rows.update(user_id="ann")
            lines = list(export_lines())
            ConversationState.rows.update(user_id="Ann")
            assert [str(one.result) for one in import_lines(lines)] == ["unchanged"]


class LegacyClaims(Host):
    def test_it_is_claimed_once(self) -> None:
        for name in self.phases():
            storage.save_state(name, state("a"))
            for spelling in SPELLINGS:
                storage.claim_conversation(name, spelling)
                assert texts(storage.load_state(name, user_id="aNN")) == ["a"]
            with pytest.raises(ConversationNotFound):
                storage.claim_conversation(name, "bob")

    def test_a_blob_under_another_spelling_is_taken_in(self) -> None:
        for name in self.phases():
            storage.save_state(name, state("a"), "Ann")
            old_save(connection, name, "ann", state("a", "b").to_dict())
            assert texts(storage.load_state(name, user_id="ANN")) == ["a", "b"]
            storage.append_messages(name, messages("c"), user_id="aNN")
            assert texts(storage.load_state(name, user_id="Ann")) == ["a", "b", "c"]
        old_save(connection, "old", "ann", state("a").to_dict())
        list(sync("tables"))
        assert texts(storage.load_state("old", user_id="Ann")) == ["a"]
        assert not ConversationConflict.rows.filter(kind="quarantined").exists()
