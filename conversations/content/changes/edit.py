"""All operations except saves of whole states: appending, and changing single messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from conversations.content.changes.base import OWN_KEYS, RowsView, View, new_token
from conversations.content.changes.change import Addition, Change, Edit
from conversations.content.digests import digest_of
from conversations.content.document import Document
from conversations.content.entries import Entry, edited, entries_of
from conversations.content.redaction import Redactions, applied
from conversations.exceptions import KeyReused, MessageNotFound
from flags.texts import quoted


@dataclass(slots=True)
class AppendMessages:
    """Add messages behind the last one; messages with known keys are not added again."""

    name: ClassVar[str] = "append"
    messages: Sequence[Any]
    keys: Sequence[str] | None = None
    needs_values: bool = False
    creates: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    items: Sequence[Any] = ()

    @property
    def needs_rows(self) -> bool:
        return self.keys is not None

    def redact(self, redactions: Redactions) -> None:
        self.messages = [applied(message, redactions) for message in self.messages]

    def addition(self) -> Addition | None:
        if self.fields or self.items or not self.messages:
            return None
        entries = self._keyed_entries()
        return Addition(entries, keys=self.keys or ())

    def apply(self, view: View) -> Change:
        change = self._change(view)
        if self.items:
            current = view.items()
            change.items = (current, [*current, *entries_of(self.items)])
        return change

    def _keyed_entries(self) -> list[Entry]:
        entries = entries_of(self.messages)
        keys = self.keys
        if keys is None:
            token = OWN_KEYS + new_token()
            keys = [f"{token}:{number}" for number in range(len(entries))]
        for entry, key in zip(entries, keys, strict=True):
            entry.key, entry.key_digest = key, entry.digest
        return entries

    def _change(self, view: View) -> Change:
        known: dict[str | None, Entry] = {}
        if self.keys:
            known = {entry.key: entry for entry in view.keyed(self.keys)}
        appended = []
        for entry in self._keyed_entries():
            earlier = known.get(entry.key)
            if earlier is None:
                appended.append(entry)
            elif earlier.key_digest != entry.digest:
                raise KeyReused(
                    f"the key {quoted(entry.key)} belongs to a message with other content."
                )
        fields = {**view.fields(), **self.fields} if self.fields else None
        return Change(fields=fields, appended=appended)


@dataclass(slots=True)
class EditMessages:
    """Change single messages by a function of the view; needs sequences and keys.

    Its cost does not grow with the conversation: messages are looked up one by one.
    """

    name: ClassVar[str] = "edit"
    change: Callable[[RowsView, Redactions], Sequence[Edit]]
    redactions: Redactions = field(default_factory=dict, init=False)
    needs_rows: bool = True
    needs_values: bool = False
    creates: bool = False

    def redact(self, redactions: Redactions) -> None:
        self.redactions = redactions

    def addition(self) -> Addition | None:
        return None

    def apply(self, view: View) -> Change:
        # An operation with `needs_rows` always gets a view of the tables.
        return Change(edits=self.change(cast("RowsView", view), self.redactions))


def replacement(reference: int | str, message: Any) -> EditMessages:
    """Replace one message."""

    def change(view: RowsView, redactions: Redactions) -> Sequence[Edit]:
        (old,) = _found(view, [reference])
        value = applied(message, redactions)
        digest = digest_of(value)
        if digest == old.digest:
            return []
        return [(old, edited(old, digest=digest, value=value))]

    return EditMessages(change)


def _found(view: RowsView, references: Sequence[int | str]) -> list[Entry]:
    """Return the messages with these sequences or keys, in order. Raises: MessageNotFound."""
    found = view.found(references)
    known = {entry.identity for entry in found} | {entry.key for entry in found}
    for reference in references:
        if reference not in known:
            raise MessageNotFound(f"there is no message {quoted(reference)} in this conversation.")
    return found


def removal(
    references: Sequence[int | str] | None, last: int | None, removed: list[Any]
) -> EditMessages:
    """Remove messages by key or sequence, or the last ones; fills `removed` with their values."""

    def change(view: RowsView, redactions: Redactions) -> Sequence[Edit]:
        dropped = view.newest(last or 0) if references is None else _found(view, references)
        removed[:] = [entry.value for entry in dropped]
        return [(entry, None) for entry in dropped]

    return EditMessages(change)


def restoration(reference: int | str, revision: int | None) -> EditMessages:
    """Bring back the version of a message that was current at `revision`, or its last one."""

    def change(view: RowsView, redactions: Redactions) -> Sequence[Edit]:
        versions = view.history(reference)
        history = [
            entry
            for entry in versions
            if entry.superseded_in is not None
            and (revision is None or entry.added_in <= revision < entry.superseded_in)
        ]
        if not history:
            raise MessageNotFound(f"there is no superseded message {quoted(reference)}.")
        old = max(history, key=lambda entry: entry.added_in)
        back = edited(old, digest=old.digest, value=old.value)
        # An insertion before the message may have given it another sequence since.
        now = view.successor(old)
        now = now or next((entry for entry in versions if entry.superseded_in is None), None)
        if now is not None:
            if now.digest == old.digest:
                return []
            back.supersedes, back.identity = now.row, now.identity
        return [(now, back)]

    return EditMessages(change)


@dataclass(slots=True)
class Clear:
    """Remove every message and item, and set the fields to their defaults."""

    name: ClassVar[str] = "edit"
    needs_rows: bool = True
    needs_values: bool = False
    creates: bool = False

    def redact(self, redactions: Redactions) -> None:
        return

    def addition(self) -> Addition | None:
        return None

    def apply(self, view: View) -> Change:
        return Change(
            fields=Document.from_dict({}).fields,
            messages=(view.messages(), []),
            items=(view.items(), []),
        )
