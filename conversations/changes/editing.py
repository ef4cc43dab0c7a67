"""Everything but whole saves: appending, and changing single messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from conversations.changes.locating import descendants
from conversations.changes.protocols import OWN_KEYS, View, differ, new_token
from conversations.digests import digest_of
from conversations.documents import Document
from conversations.exceptions import KeyReused, MessageNotFound
from conversations.merge import Entry, edited, entries_of
from conversations.redactions import Redactions, applied
from conversations.stores.normalized import Addition, Change


@dataclass(slots=True)
class AppendMessages:
    """Add messages behind the last one; those whose keys are known already are there."""

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
                raise KeyReused(f"the key {entry.key!r} belongs to a message with other content.")
        fields = {**view.fields(), **self.fields} if self.fields else None
        return Change(fields=fields, appended=appended)


def _found(entries: Sequence[Entry], reference: int | str) -> Entry:
    """Return the last entry with this sequence (an integer) or key (a string)."""
    for entry in reversed(entries):
        if reference == (entry.key if isinstance(reference, str) else entry.identity):
            return entry
    raise MessageNotFound(f"there is no message {reference!r} in this conversation.")


@dataclass(slots=True)
class EditMessages:
    """Change the list of messages by a function of the view; needs sequences and keys."""

    name: ClassVar[str] = "edit"
    change: Callable[[View, Redactions], tuple[Sequence[Entry], Sequence[Entry]]]
    redactions: Redactions = field(default_factory=dict, init=False)
    needs_rows: bool = True
    needs_values: bool = False
    creates: bool = False

    def redact(self, redactions: Redactions) -> None:
        self.redactions = redactions

    def addition(self) -> Addition | None:
        return None

    def apply(self, view: View) -> Change:
        before, after = self.change(view, self.redactions)
        return Change(messages=(before, after) if differ(before, after) else None)


def replacement(reference: int | str, message: Any) -> EditMessages:
    """Replace one message."""

    def change(view: View, redactions: Redactions) -> tuple[Sequence[Entry], Sequence[Entry]]:
        current = view.messages()
        old = _found(current, reference)
        value = applied(message, redactions)
        digest = digest_of(value)
        if digest == old.digest:
            return current, current
        new = edited(old, digest=digest, value=value)
        return current, [new if entry is old else entry for entry in current]

    return EditMessages(change)


def removal(
    references: Sequence[int | str] | None, last: int | None, removed: list[Any]
) -> EditMessages:
    """Remove messages by key or sequence, or the last ones; fills `removed` with their values."""

    def change(view: View, redactions: Redactions) -> tuple[Sequence[Entry], Sequence[Entry]]:
        current = view.messages()
        if references is None:
            dropped = current[len(current) - min(last or 0, len(current)) :]
        else:
            dropped = [_found(current, reference) for reference in references]
        ids = {id(entry) for entry in dropped}
        removed[:] = [entry.value for entry in current if id(entry) in ids]
        return current, [entry for entry in current if id(entry) not in ids]

    return EditMessages(change, needs_values=True)


def restoration(reference: int | str, revision: int | None) -> EditMessages:
    """Bring back the version of a message that was current at `revision`, or its last one."""

    def change(view: View, redactions: Redactions) -> tuple[Sequence[Entry], Sequence[Entry]]:
        current = view.messages()

        def name(entry: Entry) -> int | str | None:
            return entry.key if isinstance(reference, str) else entry.identity

        versions = view.versions(values=True)
        history = [
            entry
            for entry in versions
            if name(entry) == reference
            and entry.superseded_in is not None
            and (revision is None or entry.added_in <= revision < entry.superseded_in)
        ]
        if not history:
            raise MessageNotFound(f"there is no superseded message {reference!r}.")
        old = max(history, key=lambda entry: entry.added_in)
        back = edited(old, digest=old.digest, value=old.value)
        # An insertion before it may have given the message another sequence since.
        (now,) = descendants([old], versions, current)
        now = now or next((e for e in current if name(e) == reference), None)
        if now is not None:
            if now.digest == old.digest:
                return current, current
            back.supersedes, back.identity = now.row, now.identity
            return current, [back if entry is now else entry for entry in current]
        return current, sorted([*current, back], key=lambda entry: entry.identity or 0)

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
