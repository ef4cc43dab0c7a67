"""Saving and loading whole states, and adding to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connections, transaction

from conversations import conf, operations
from conversations.changes import AppendMessages, SaveState
from conversations.digests import digest_of
from conversations.documents import (
    BASELINE_KEY,
    FOCUS,
    HISTORY,
    ITEMS,
    LAST_TOOL_RESULT,
    MESSAGES,
    STEP_COUNT,
    USER_INPUT,
    Document,
    Known,
    canonical,
    check_types,
    checked_document,
    checked_messages,
    field_digests,
)
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.operations import Outcome
from conversations.owners import owner_key
from conversations.reading import Selection, read
from conversations.seals import Seal
from conversations.shadow import shadow
from conversations.state import UNCOMMITTED_KEY, AgentState, Baseline, LoadInfo, SaveResult
from conversations.storage.arguments import (
    checked_id,
    checked_keys,
    checked_limit,
    checked_threshold,
)
from conversations.storage.measuring import measured_read, measured_write
from conversations.transactions import managed
from flags import metrics
from flags.phases import StoreName

_FIELDS = {
    "user_input": USER_INPUT,
    "focus_areas": FOCUS,
    "step_count": STEP_COUNT,
    "last_tool_result": LAST_TOOL_RESULT,
}
# How many elements behind a seal are told by their digests, before the list is sealed anew.
UNSEALED = 64
_LISTS = ("new_messages", "new_context_items")


def save_state(conversation_id: Any, state: Any, user_id: Any = None) -> SaveResult:
    """Make a conversation what the state says, and create it if there is none.

    Of a loaded state, only what the caller changed since the load is applied; what the load
    left out, and what others added meanwhile, stays. A state that was constructed says what
    the lists are. Messages that are dropped or edited are superseded, not removed. Saving
    the same state again adds nothing.

    Returns: a SaveResult; `revision` is 0 while the conversation is in legacy alone.
    Raises: InvalidState (before any SQL), InvalidOwner, ConversationNotFound (the id belongs
    to somebody else), ConversationDeleted, StorageUnavailable (nothing was changed, or the
    connection was lost: save the same state again). Where the caller's own transaction is lost
    with its connection, the database's error stays what it is, as in every operation.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    to_dict = getattr(state, "to_dict", None)
    if not callable(to_dict) or isinstance(state, type):
        raise InvalidState(f"a {type(state).__name__} is no state", path="state")
    data = to_dict()
    baseline = _baseline_of(state)
    if isinstance(data, Mapping) and baseline is None and data.get(BASELINE_KEY) is not None:
        baseline = Baseline.from_json(data[BASELINE_KEY])
    if baseline is not None and baseline.conversation_id != conversation_id:
        # What was loaded from another conversation says nothing of this one.
        baseline = None
    before = (None, None) if baseline is None else (baseline.message_seal, baseline.item_seal)
    messages = items = message_seal = item_seal = None
    if isinstance(data, Mapping):
        if baseline is not None:
            messages = baseline.known_messages(data.get(MESSAGES))
            items = baseline.known_items(data.get(ITEMS))
        # Before anything is read: what another task of the caller changes meanwhile breaks them.
        message_seal = _seal(data.get(MESSAGES), before[0], messages)
        item_seal = _seal(data.get(ITEMS), before[1], items)
    operation = SaveState(checked_document(data, messages=messages, items=items), baseline)
    outcome, result = written(conversation_id, operation, owner)
    if _remembers(state):
        seals = (
            _unbroken(message_seal, data.get(MESSAGES), before[0]),
            _unbroken(item_seal, data.get(ITEMS), before[1]),
        )
        baseline, info = _advanced(conversation_id, operation, outcome, seals=seals)
        _attach(state, baseline, info, committed=result["committed"])
    return result


def _seal(values: Any, before: Seal | None, known: Known | None) -> Seal | None:
    """Return the seal of a list to save: the one before, while it covers most of it."""
    if before is not None and known is not None and known.sealed:
        if len(values) - known.sealed <= UNSEALED:
            return before
    return Seal.of(values)


def _unbroken(seal: Seal | None, values: Any, before: Seal | None) -> Seal | None:
    """Return a new seal only if the list is still what it was before its digests were taken."""
    return seal if seal is None or seal is before or seal.unbroken(values) else None


def _remembers(state: Any) -> bool:
    """Whether a state takes attributes. One that does not is saved, and says what it is."""
    try:
        setattr(state, UNCOMMITTED_KEY, getattr(state, UNCOMMITTED_KEY, None))
    except AttributeError:
        return False
    return True


def written(conversation_id: str, operation: Any, owner: str | None) -> tuple[Outcome, SaveResult]:
    """Carry out an operation. Returns: its outcome, and what callers get of it."""
    committed = not managed(connections[conf.alias()])
    outcome = measured_write(
        operation.name,
        conversation_id,
        lambda: operations.write(conversation_id, operation, owner=owner),
    )
    result = SaveResult(
        success=True,
        conversation_id=conversation_id,
        revision=outcome.revision,
        stores=[str(name) for name in outcome.stores],
        fallback=outcome.fallback,
        committed=committed,
    )
    return outcome, result


def _advanced(
    conversation_id: str,
    operation: SaveState,
    outcome: Outcome,
    *,
    seals: tuple[Seal | None, Seal | None],
) -> tuple[Baseline, LoadInfo]:
    """Return the baseline of a state that was saved, and what it still does not show."""
    document, before = operation.document, operation.baseline
    row = outcome.row or outcome.bumped
    in_tables = StoreName.NORMALIZED in outcome.stores and row is not None
    sequences, item_ids = operation.saved_sequences(), operation.saved_item_ids()
    hidden = (0, 0)
    if in_tables and row is not None:
        hidden = (row.message_count - len(sequences), row.context_item_count - len(item_ids))
    elif before is not None:
        hidden = (before.hidden_messages, before.hidden_items)
    store = StoreName.NORMALIZED if in_tables else StoreName.LEGACY
    baseline = Baseline(
        conversation_id=conversation_id,
        store=store.value,
        revision=outcome.revision,
        version=bytes(row.messages_digest).hex() if in_tables and row is not None else "",
        sequences=sequences if in_tables else [0] * len(sequences),
        message_digests=operation.digests,
        item_ids=item_ids if in_tables else [0] * len(item_ids),
        item_digests=operation.item_digests,
        field_digests=operation.field_digests,
        history_length=len(document.fields[HISTORY]),
        stored_history_length=len(operation.history),
        stored_history_digest=digest_of(operation.history),
        hidden_messages=max(hidden[0], 0),
        # What others added since stands behind, and in between.
        messages_before=before.messages_before if before else 0,
        hidden_items=max(hidden[1], 0),
        message_seal=seals[0],
        item_seal=seals[1],
    )
    return baseline, LoadInfo(
        store.value, outcome.revision, False, max(hidden[0], 0), max(hidden[1], 0)
    )


def _attach(state: Any, baseline: Baseline, info: LoadInfo, *, committed: bool) -> None:
    """Let the state's baseline be what was saved, once that is committed; see `Uncommitted`."""
    if committed:
        attach(state, baseline, info)
        return
    if not connections[conf.alias()].in_atomic_block:
        # Nobody tells whether a caller without autocommit has committed. From the baseline
        # before, the next save is right either way: what is there already is not added again.
        return
    uncommitted = Uncommitted(state, baseline, info)
    setattr(state, UNCOMMITTED_KEY, uncommitted)
    transaction.on_commit(uncommitted, using=conf.alias())


class Uncommitted:
    """The baseline after a save inside the caller's transaction: in force unless rolled back.

    Django forgets what is to be called on commit when the transaction, or the savepoint it
    was registered in, is rolled back. Then the baseline before is in force again, and the
    next save applies everything once more. Copies of the state share this object; what is
    pickled leaves the process, and takes the baseline that is committed.
    """

    def __init__(self, state: Any, baseline: Baseline, info: LoadInfo) -> None:
        self.state, self.baseline, self.info = state, baseline, info
        self.before: Uncommitted | None = getattr(state, UNCOMMITTED_KEY, None)
        self.committed = False

    def __call__(self) -> None:
        self.committed = True
        attach(self.state, self.baseline, self.info)

    @property
    def in_force(self) -> bool:
        """Whether the save is committed, or still will be."""
        waiting = connections[conf.alias()].run_on_commit
        return self.committed or any(entry[1] is self for entry in waiting)

    def __deepcopy__(self, memo: Any) -> Uncommitted:
        return self

    def __reduce__(self) -> Any:
        return (type(None), ())


def _nothing_of(conversation_id: str) -> Baseline:
    """Return the baseline of a state that says nothing yet: its defaults are no changes."""
    fields = Document.from_dict({}).fields
    return Baseline(
        conversation_id=conversation_id,
        store=StoreName.NORMALIZED.value,
        revision=0,
        field_digests=field_digests(fields),
        stored_history_digest=digest_of(fields[HISTORY]),
    )


def _baseline_of(state: Any) -> Baseline | None:
    """Return what the state goes on from: its latest save that was not rolled back, or its load."""
    found: Uncommitted | None = getattr(state, UNCOMMITTED_KEY, None)
    while found is not None:
        if found.in_force:
            return found.baseline
        found = found.before
    baseline: Baseline | None = getattr(state, BASELINE_KEY, None)
    return baseline


def attach(state: Any, baseline: Baseline, info: LoadInfo | None) -> None:
    """Give a state its baseline and what its load left out."""
    setattr(state, BASELINE_KEY, baseline)
    setattr(state, UNCOMMITTED_KEY, None)
    state.load_info = info


def load_state(
    conversation_id: Any,
    context_quality_threshold: float | None = None,
    *,
    user_id: Any = None,
    max_messages: int | None = None,
    max_context_items: int | None = None,
) -> Any:
    """Return the state of a conversation as of one revision, for a later `save_state`.

    `max_messages` gives the newest so many, `max_context_items` the best, and the threshold
    leaves out context items of a known lower quality (`relevance_score`, 0..1); order stays.
    `state.load_info` says where the state came from, whether it is stale, and what was left
    out. With `user_id`, another owner's conversation reads as missing.

    Returns: an instance of `STATE_CLASS`; an empty one when there is no such conversation.
    Raises: InvalidState, InvalidOwner, StorageUnavailable (a store that may hold the
    conversation did not answer).
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    selection = Selection(
        checked_threshold(context_quality_threshold),
        checked_limit(max_messages, path="max_messages"),
        checked_limit(max_context_items, path="max_context_items"),
    )
    measured = metrics.enabled()
    try:
        if measured:
            found = measured_read(
                conversation_id, lambda: read(conversation_id, selection, owner=owner)
            )
        else:
            found = read(conversation_id, selection, owner=owner)
    except ConversationNotFound:
        found = None
    made = conf.state_class()
    if found is None:
        # Two callers who both found nothing and both save lose nothing: each was given nothing.
        state = made.from_dict(AgentState(user_input="").to_dict())
        attach(state, _nothing_of(conversation_id), None)
        return state
    if measured:
        shadow(conversation_id)
    state = made.from_dict(found.document.to_dict())
    attach(state, found.baseline, found.info)
    return state


def append_messages(
    conversation_id: Any,
    messages: Iterable[Any],
    *,
    user_id: Any = None,
    keys: Iterable[str] | None = None,
    create: bool = False,
) -> SaveResult:
    """Add messages behind the last one; the cost does not grow with the conversation.

    `keys` (one per message) make the call repeatable: a message whose key is known already
    is not added again. With `create`, a conversation that does not exist is made.

    Raises: InvalidState (before any SQL), KeyReused (the key has other content),
    ConversationNotFound (missing, another owner's or deleted), StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    values = checked_messages(messages)
    operation = AppendMessages(values, checked_keys(keys, count=len(values)), creates=create)
    return written(conversation_id, operation, owner)[1]


def update_state_partial(
    conversation_id: Any, updates: Mapping[str, Any], user_id: Any = None
) -> SaveResult:
    """Change a few things of a conversation, and leave everything else as it is.

    `updates` may hold user_input, focus_areas, step_count, last_tool_result, new_messages
    and new_context_items (both added behind what is there).

    Raises: InvalidState (before any SQL; also for other names), ConversationNotFound,
    StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    if not isinstance(updates, Mapping):
        raise InvalidState(f"is a {type(updates).__name__}, not a mapping", path="updates")
    unknown = [name for name in updates if name not in _FIELDS and name not in _LISTS]
    if unknown:
        raise InvalidState(
            f"is none of {', '.join([*_FIELDS, *_LISTS])}", path=f"updates.{unknown[0]}"
        )
    fields = {}
    limit = conf.get("MAX_STATE_BYTES")
    for name, field in _FIELDS.items():
        if name in updates:
            path = f"updates.{name}"
            value, _ = canonical(updates[name], path=path, max_bytes=limit)
            check_types({field: value}, path=path)
            fields[field] = value
    operation = AppendMessages(
        checked_messages(updates.get("new_messages", ()), path="updates.new_messages"),
        fields=fields,
        items=checked_messages(
            updates.get("new_context_items", ()), path="updates.new_context_items"
        ),
    )
    return written(conversation_id, operation, owner)[1]
