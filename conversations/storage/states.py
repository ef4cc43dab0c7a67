"""Save and load whole states, and add to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from django.db import connections, transaction

from conversations import conf
from conversations.content.baseline import Baseline
from conversations.content.changes import AppendMessages, SaveState
from conversations.content.digests import digest_of
from conversations.content.document import (
    BASELINE_KEY,
    DEFAULTS,
    FOCUS,
    HISTORY,
    ITEMS,
    LAST_TOOL_RESULT,
    MESSAGES,
    STEP_COUNT,
    USER_INPUT,
    Document,
    field_digests,
)
from conversations.content.fingerprint import Seal
from conversations.content.turns import OVERLAPS
from conversations.content.validation import (
    Known,
    canonical,
    check_document,
    check_messages,
    check_types,
)
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.reading import EVERYTHING, Selection, read
from conversations.reading.shadow import shadow
from conversations.routing.owners import UserRef, owner_key
from conversations.routing.standing import decide
from conversations.signals import conversation_saved, send_on_commit
from conversations.state import (
    UNCOMMITTED_KEY,
    AgentState,
    LoadableState,
    LoadInfo,
    SaveResult,
    StateLike,
)
from conversations.storage.arguments import (
    ConversationId,
    Texts,
    check_choice,
    check_class,
    check_flag,
    check_id,
    check_keys,
    check_limit,
    check_threshold,
)
from conversations.storage.coroutines import coroutine_of
from conversations.storage.measuring import measured_read, measured_write
from conversations.writing import write
from conversations.writing.write import Outcome
from flags import metrics
from flags.connections import managed
from flags.phases import StoreName

if TYPE_CHECKING:
    # From Python 3.13 on, typing's takes a default as well: the class that `load_state` returns
    # without `state_class`.
    from typing_extensions import TypeVar

    S = TypeVar("S", bound=LoadableState, default=AgentState)
else:
    from typing import TypeVar

    S = TypeVar("S", bound=LoadableState)

_FIELDS = {
    "user_input": USER_INPUT,
    "focus_areas": FOCUS,
    "step_count": STEP_COUNT,
    "last_tool_result": LAST_TOOL_RESULT,
}
# The result of a load without such a conversation.
Missing = Literal["empty", "raise"]
EMPTY: Missing = "empty"
RAISE: Missing = "raise"
# The most elements behind a seal that are compared by digest; then the list is sealed again.
UNSEALED = 64
_LISTS = ("new_messages", "new_context_items")


def save_state(
    conversation_id: ConversationId, state: StateLike, user_id: UserRef = None
) -> SaveResult:
    """Save a state, and create its conversation if there is none.

    A loaded state applies only the caller's changes since the load. Content that the load left
    out, or that others added meanwhile, stays. A constructed state replaces the lists. Messages
    that are dropped or edited are superseded, not removed. Saving the same state again adds
    nothing.

    Returns: a SaveResult; `revision` is 0 while the conversation is in legacy alone.
    Raises: InvalidState (before any SQL), InvalidOwner, ConversationNotFound (the id belongs
    to another user), ConversationDeleted. StorageUnavailable: nothing was changed, or the
    connection was lost; save the same state again. The database's own error, when the caller's
    transaction is lost with its connection, as in every operation.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    to_dict = getattr(state, "to_dict", None)
    if not callable(to_dict) or isinstance(state, type):
        raise InvalidState(
            f"a {type(state).__name__} is no state: pass an AgentState, such as"
            " AgentState.from_dict(mapping)",
            path="state",
        )
    data = to_dict()
    baseline = _baseline_of(state)
    if isinstance(data, Mapping) and baseline is None and data.get(BASELINE_KEY) is not None:
        baseline = Baseline.from_json(data[BASELINE_KEY])
    if baseline is not None and baseline.conversation_id != conversation_id:
        # The baseline of another conversation does not apply to this one.
        baseline = None
    before = (None, None) if baseline is None else (baseline.message_seal, baseline.item_seal)
    messages = items = message_seal = item_seal = None
    if isinstance(data, Mapping):
        if baseline is not None:
            messages = baseline.known_messages(data.get(MESSAGES))
            items = baseline.known_items(data.get(ITEMS))
        # Before the state is read: another task's change meanwhile then breaks the seals.
        message_seal = _seal(data.get(MESSAGES), before[0], messages)
        item_seal = _seal(data.get(ITEMS), before[1], items)
    operation = SaveState(check_document(data, messages=messages, items=items), baseline)
    outcome, result = carry_out(conversation_id, operation, owner)
    if _remembers(state):
        seals = (
            message_seal and _unbroken(message_seal, data.get(MESSAGES), before[0]),
            item_seal and _unbroken(item_seal, data.get(ITEMS), before[1]),
        )
        baseline, info = _advanced(conversation_id, operation, outcome, seals=seals)
        if result["committed"]:
            attach(state, baseline, info)
        else:
            _attach_later(state, baseline, info)
    return result


asave_state = coroutine_of(save_state)


def _seal(values: Any, before: Seal | None, known: Known | None) -> Seal | None:
    """Return the seal of a list to save: the one before, while it covers most of it."""
    if before is not None and known is not None and known.sealed:
        if len(values) - known.sealed <= UNSEALED:
            return before
    return Seal.of(values)


def _unbroken(seal: Seal, values: Any, before: Seal | None) -> Seal | None:
    """Return a new seal only if the list is unchanged since before its digests were taken."""
    return seal if seal is before or seal.unbroken(values) else None


def _remembers(state: Any) -> bool:
    """Whether a state takes attributes. One that does not is saved like a constructed one."""
    try:
        setattr(state, UNCOMMITTED_KEY, getattr(state, UNCOMMITTED_KEY, None))
    except AttributeError:
        return False
    return True


def carry_out(
    conversation_id: str, operation: Any, owner: str | None
) -> tuple[Outcome, SaveResult]:
    """Carry out an operation. Returns: its outcome, and the result for callers."""
    committed = not managed(connections[conf.alias()])
    decision = decide(conversation_id)
    if metrics.enabled():
        outcome = measured_write(
            operation.name,
            decision,
            lambda: write.write(conversation_id, operation, owner=owner, decision=decision),
        )
    else:
        outcome = write.write(conversation_id, operation, owner=owner, decision=decision)
    if outcome.changed and conversation_saved.receivers:
        send_on_commit(conversation_saved, conversation_id, revision=outcome.revision)
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
    """Return the baseline of a saved state, and the counts of content that it still leaves out."""
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
        # Messages that others added since stand behind these, and in between.
        messages_before=before.messages_before if before else 0,
        hidden_items=max(hidden[1], 0),
        message_seal=seals[0],
        item_seal=seals[1],
    )
    return baseline, LoadInfo(
        store.value, outcome.revision, False, max(hidden[0], 0), max(hidden[1], 0)
    )


def _attach_later(state: Any, baseline: Baseline, info: LoadInfo) -> None:
    """Attach the baseline of a save once that is committed; see `Uncommitted`."""
    if not connections[conf.alias()].in_atomic_block:
        # Django cannot tell whether a caller without autocommit has committed. The next save is
        # right from the earlier baseline either way: it adds no message twice.
        return
    uncommitted = Uncommitted(state, baseline, info)
    setattr(state, UNCOMMITTED_KEY, uncommitted)
    transaction.on_commit(uncommitted, using=conf.alias())


class Uncommitted:
    """The baseline after a save inside the caller's transaction: in force unless rolled back.

    When a transaction or savepoint is rolled back, Django drops the functions registered in it
    for the commit. Then the earlier baseline is in force again, and the next save applies
    everything once more. Copies of the state share this object. A pickled state leaves the
    process, and takes the committed baseline.
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
    """Return the baseline of a missing conversation: default fields are no changes."""
    fields = Document.from_dict({}).fields
    return Baseline(
        conversation_id=conversation_id,
        store=StoreName.NORMALIZED.value,
        revision=0,
        field_digests=field_digests(fields),
        stored_history_digest=digest_of(fields[HISTORY]),
    )


def _baseline_of(state: Any) -> Baseline | None:
    """Return the baseline of the state's latest save that was not rolled back, or of its load."""
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
    conversation_id: ConversationId,
    context_quality_threshold: float | None = None,
    *,
    user_id: UserRef = None,
    max_messages: int | None = None,
    max_context_items: int | None = None,
    whole_turns: bool = True,
    state_class: type[S] | None = None,
    missing: Missing = EMPTY,
) -> S:
    """Return the state of a conversation as of one revision, for a later `save_state`.

    `max_messages` selects the newest messages, `max_context_items` the best items. The threshold
    leaves out items of a known lower quality (`relevance_score`, 0..1). The order stays.
    `state.load_info` has the store, whether the state is stale, and the counts that were left out.

    Providers refuse a tool's result without its call. With `whole_turns`, the messages therefore
    begin with one that a provider takes: up to 16 messages more are given. If a group of a call
    and its results is longer, the messages begin behind it. If it ends the conversation, the whole
    group is given. `load_info.messages_beyond_limit` counts the messages more, or fewer (negative).
    `max_messages=0` gives none.

    With `user_id`, another owner's conversation reads as missing.

    Returns: an instance of `state_class`, by default of `STATE_CLASS`, which type checkers take
    for AgentState. It is empty when there is no such conversation, unless `missing` is "raise".
    Raises: InvalidState (before any SQL), InvalidOwner, StorageUnavailable (a store that may hold
    the conversation did not answer), ConversationNotFound with `missing="raise"` (missing,
    another owner's or deleted).
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    made: Any = conf.state_class() if state_class is None else check_class(state_class)
    turns = check_flag(whole_turns, path="whole_turns")
    selection = EVERYTHING
    if (context_quality_threshold, max_messages, max_context_items) != (None, None, None):
        selection = Selection(
            check_threshold(context_quality_threshold),
            check_limit(max_messages, path="max_messages"),
            check_limit(max_context_items, path="max_context_items"),
            OVERLAPS[0] if turns and max_messages else 0,
        )
    raises = check_choice(missing, of=(EMPTY, RAISE), path="missing") == RAISE
    decision = decide(conversation_id)
    measured = metrics.enabled()
    try:
        if measured:
            found = measured_read(
                decision, lambda: read(conversation_id, selection, decision, owner=owner)
            )
        else:
            found = read(conversation_id, selection, decision, owner=owner)
    except ConversationNotFound:
        found = None
    if found is None and raises:
        raise ConversationNotFound
    if found is None:
        # Two callers that both find none and save keep both states: neither load had content.
        state: S = made.from_dict(AgentState(user_input="").to_dict())
        attach(state, _nothing_of(conversation_id), None)
        return state
    if measured:
        shadow(conversation_id, decision)
    state = made.from_dict(found.document.to_dict())
    attach(state, found.baseline, found.info)
    return state


aload_state = coroutine_of(load_state)


def append_messages(
    conversation_id: ConversationId,
    messages: Iterable[Mapping[str, Any]],
    *,
    user_id: UserRef = None,
    keys: Texts | Iterator[str] | None = None,
    create: bool = False,
) -> SaveResult:
    """Add messages behind the last one; the cost does not grow with the conversation.

    `keys` (one per message) make the call repeatable: a message with a known key is not added
    again. With `create`, a missing conversation is created.

    Raises: InvalidState (before any SQL), KeyReused (the key has other content),
    ConversationNotFound (missing, another owner's or deleted), StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    values = check_messages(messages)
    operation = AppendMessages(values, check_keys(keys, count=len(values)), creates=create)
    return carry_out(conversation_id, operation, owner)[1]


aappend_messages = coroutine_of(append_messages)


def _unknown_update(name: Any, place: int) -> InvalidState:
    """Return the error for an unknown name in updates; it repeats only our own names."""
    known = [*_FIELDS, *_LISTS]
    if name in DEFAULTS:
        return InvalidState(f"is none of {', '.join(known)}", path=f"updates.{name}")
    near = get_close_matches(name, known, n=1) if isinstance(name, str) else ()
    hint = f": did you mean {near[0]}?" if near else ""
    return InvalidState(
        f"the name of entry {place} is none of {', '.join(known)}{hint}", path="updates"
    )


def update_state_partial(
    conversation_id: ConversationId, updates: Mapping[str, Any], user_id: UserRef = None
) -> SaveResult:
    """Change some fields of a conversation, or add to it; the rest stays.

    `updates` may hold user_input, focus_areas, step_count, last_tool_result, new_messages
    and new_context_items (both are added behind the last one).

    Raises: InvalidState (before any SQL; also for other names), ConversationNotFound,
    StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    if not isinstance(updates, Mapping):
        raise InvalidState(f"is a {type(updates).__name__}, not a mapping", path="updates")
    for place, name in enumerate(updates, start=1):
        if name not in _FIELDS and name not in _LISTS:
            raise _unknown_update(name, place)
    fields = {}
    limit = conf.get("MAX_STATE_BYTES")
    for name, field in _FIELDS.items():
        if name in updates:
            path = f"updates.{name}"
            value, _ = canonical(updates[name], path=path, max_bytes=limit)
            check_types({field: value}, path=path)
            fields[field] = value
    operation = AppendMessages(
        check_messages(updates.get("new_messages", ()), path="updates.new_messages"),
        fields=fields,
        items=check_messages(
            updates.get("new_context_items", ()), path="updates.new_context_items"
        ),
    )
    return carry_out(conversation_id, operation, owner)[1]


aupdate_state_partial = coroutine_of(update_state_partial)
