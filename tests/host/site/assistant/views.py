"""Views that talk to an assistant: one in a transaction, one asynchronous."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from conversations import aio, storage


def say(request: HttpRequest, conversation_id: str) -> JsonResponse:
    """Add what the user says, in the request's transaction."""
    state = storage.load_state(conversation_id, user_id=request.user)
    state.conversation_history.append(json.loads(request.body))
    result = storage.save_state(conversation_id, state, request.user)
    return JsonResponse(dict(result))


def say_and_fail(request: HttpRequest, conversation_id: str) -> JsonResponse:
    """Save, and then fail: the request's transaction is rolled back."""
    say(request, conversation_id)
    raise RuntimeError("after the save")


@transaction.non_atomic_requests
async def asay(request: HttpRequest, conversation_id: str) -> JsonResponse:
    """Add what the user says, without blocking the event loop."""
    user = await request.auser()
    state = await aio.load_state(conversation_id, user_id=user)
    state.conversation_history.append(json.loads(request.body))
    result = await aio.save_state(conversation_id, state, user)
    return JsonResponse(dict(result))
