"""The foreign project's own tests of the installed wheel."""

import asyncio
import json
from pathlib import Path

from django.contrib.auth import get_user_model
from django.test import AsyncClient, Client, TransactionTestCase

import conversations
from conversations.exceptions import InvalidOwner
from conversations.models import ConversationState, ConversationTombstone
from conversations.storage import load_state


def message(text):
    return {"role": "user", "content": text}


class WheelTests(TransactionTestCase):
    def setUp(self):
        users = get_user_model().objects
        self.user = users.create_superuser("someone", "someone@example.org", "secret")
        self.client = Client()
        self.client.force_login(self.user)

    def say(self, url, text, client=None):
        body = json.dumps(message(text))
        return (client or self.client).post(url, body, content_type="application/json")

    def said(self, conversation_id):
        return load_state(conversation_id, user_id=self.user).conversation_history

    def test_the_apps_come_from_the_wheel(self):
        self.assertIn("site-packages", str(Path(conversations.__file__)))

    def test_two_requests_add_to_one_conversation(self):
        first, second = self.say("/say/c1", "one").json(), self.say("/say/c1", "two").json()
        self.assertEqual(self.said("c1"), [message("one"), message("two")])
        self.assertIs(first["committed"], False)
        self.assertEqual((first["revision"], second["revision"]), (1, 2))
        self.assertEqual(second["stores"], ["tables"])

    def test_a_request_that_fails_after_its_save_saves_nothing(self):
        self.say("/say/c1", "one")
        with self.assertRaisesMessage(RuntimeError, "after the save"):
            self.say("/say-and-fail/c1", "two")
        self.assertEqual(self.said("c1"), [message("one")])

    def test_health_is_asked_without_a_login(self):
        for client in (Client(), AsyncClient()):
            found = client.get("/health/")
            found = asyncio.run(found) if asyncio.iscoroutine(found) else found
            self.assertEqual(found.status_code, 200)
            self.assertEqual(found.json(), {"status": "unknown", "reasons": ["not_measured"]})

    def test_an_asynchronous_view_commits(self):
        async def talk():
            client = AsyncClient()
            await client.aforce_login(self.user)
            for text in ("one", "two"):
                answer = await client.post(
                    "/asay/c1", json.dumps(message(text)), content_type="application/json"
                )
            return answer.json()

        self.assertIs(asyncio.run(talk())["committed"], True)
        self.assertEqual(self.said("c1"), [message("one"), message("two")])

    def test_a_fresh_team_must_name_the_user(self):
        with self.assertRaises(InvalidOwner):
            load_state("c1")

    def test_deleting_a_user_leaves_tombstones_only(self):
        self.say("/say/c1", "one")
        self.user.delete()
        self.assertFalse(ConversationState.objects.exists())
        self.assertEqual(ConversationTombstone.objects.get().conversation_id, "c1")

    def test_the_admin_shows_the_conversations(self):
        self.say("/say/c1", "one")
        index = self.client.get("/admin/")
        self.assertContains(index, "Conversations")
        listed = self.client.get("/admin/conversations/conversationstate/")
        self.assertContains(listed, "c1")
