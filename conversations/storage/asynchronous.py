"""The coroutine twins: each wraps one whole synchronous function, and so one transaction.

A coroutine that is cancelled may still commit: repeat it with the same state or keys.
"""

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

asave_state = sync_to_async(save_state)
aload_state = sync_to_async(load_state)
aappend_messages = sync_to_async(append_messages)
aupdate_state_partial = sync_to_async(update_state_partial)
areplace_message = sync_to_async(replace_message)
aremove_messages = sync_to_async(remove_messages)
arestore_message = sync_to_async(restore_message)
aredact_message = sync_to_async(redact_message)
alist_messages = sync_to_async(list_messages)
alist_conversations = sync_to_async(list_conversations)
aget_conversation_id = sync_to_async(get_conversation_id)
aget_conversation_timestamp = sync_to_async(get_conversation_timestamp)
ashould_resume_conversation = sync_to_async(should_resume_conversation)
acreate_new_conversation = sync_to_async(create_new_conversation)
aclear_conversation = sync_to_async(clear_conversation)
aclaim_conversation = sync_to_async(claim_conversation)
afork_conversation = sync_to_async(fork_conversation)
adelete_conversation = sync_to_async(delete_conversation)
