"""The coroutine twins: each wraps one whole synchronous function, and so one transaction.

A coroutine that is cancelled may still commit: repeat it with the same state or keys. Between two
of them, outside a transaction, no connection of a pool is kept.
"""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

from conversations.storage.lifecycle import (
    claim_conversation,
    clear_conversation,
    create_new_conversation,
    delete_conversation,
    fork_conversation,
)
from conversations.storage.listing import (
    get_conversation_id,
    get_conversation_timestamp,
    list_conversations,
    should_resume_conversation,
)
from conversations.storage.messages import (
    list_messages,
    remove_messages,
    replace_message,
    restore_message,
)
from conversations.storage.redaction import redact_message
from conversations.storage.states import (
    append_messages,
    load_state,
    save_state,
    update_state_partial,
)
from conversations.transactions import give_back

P = ParamSpec("P")
T = TypeVar("T")


def _twin(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    @wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        finally:
            give_back()

    return sync_to_async(whole)


asave_state = _twin(save_state)
aload_state = _twin(load_state)
aappend_messages = _twin(append_messages)
aupdate_state_partial = _twin(update_state_partial)
areplace_message = _twin(replace_message)
aremove_messages = _twin(remove_messages)
arestore_message = _twin(restore_message)
aredact_message = _twin(redact_message)
alist_messages = _twin(list_messages)
alist_conversations = _twin(list_conversations)
aget_conversation_id = _twin(get_conversation_id)
aget_conversation_timestamp = _twin(get_conversation_timestamp)
ashould_resume_conversation = _twin(should_resume_conversation)
acreate_new_conversation = _twin(create_new_conversation)
aclear_conversation = _twin(clear_conversation)
aclaim_conversation = _twin(claim_conversation)
afork_conversation = _twin(fork_conversation)
adelete_conversation = _twin(delete_conversation)
