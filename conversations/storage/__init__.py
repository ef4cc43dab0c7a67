"""The public API: saving, loading, appending, listing and deleting conversations.

Every function has a coroutine twin with the prefix `a`; `conversations.aio` gives the
coroutines under the plain names. `user_id` is a user or any form of its primary key; an
operator's tool, which acts whoever the owner is, says `ANY_OWNER`.
"""

from conversations.owners import ANY_OWNER
from conversations.storage.asynchronous import (
    aappend_messages,
    aclaim_conversation,
    aclear_conversation,
    acreate_new_conversation,
    adelete_conversation,
    afork_conversation,
    aget_conversation_id,
    aget_conversation_timestamp,
    alist_conversations,
    alist_messages,
    aload_state,
    aredact_message,
    aremove_messages,
    areplace_message,
    arestore_message,
    asave_state,
    ashould_resume_conversation,
    aupdate_state_partial,
)
from conversations.storage.lifecycle import (
    claim_conversation,
    clear_conversation,
    create_new_conversation,
    delete_conversation,
    fork_conversation,
)
from conversations.storage.listing import (
    ConversationPage,
    ConversationSummary,
    get_conversation_id,
    get_conversation_timestamp,
    list_conversations,
    should_resume_conversation,
)
from conversations.storage.messages import (
    MessagePage,
    StoredMessage,
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

__all__ = [
    "ANY_OWNER",
    "ConversationPage",
    "ConversationSummary",
    "MessagePage",
    "StoredMessage",
    "aappend_messages",
    "aclaim_conversation",
    "aclear_conversation",
    "acreate_new_conversation",
    "adelete_conversation",
    "afork_conversation",
    "aget_conversation_id",
    "aget_conversation_timestamp",
    "alist_conversations",
    "alist_messages",
    "aload_state",
    "append_messages",
    "aredact_message",
    "aremove_messages",
    "areplace_message",
    "arestore_message",
    "asave_state",
    "ashould_resume_conversation",
    "aupdate_state_partial",
    "claim_conversation",
    "clear_conversation",
    "create_new_conversation",
    "delete_conversation",
    "fork_conversation",
    "get_conversation_id",
    "get_conversation_timestamp",
    "list_conversations",
    "list_messages",
    "load_state",
    "redact_message",
    "remove_messages",
    "replace_message",
    "restore_message",
    "save_state",
    "should_resume_conversation",
    "update_state_partial",
]
