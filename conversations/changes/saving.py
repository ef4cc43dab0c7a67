"""Saving a whole state: what the caller changed since the load, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from conversations.changes.locating import located_items, located_messages
from conversations.changes.protocols import OWN_KEYS, View, differ, new_token
from conversations.digests import digest_of
from conversations.documents import HISTORY, Document
from conversations.merge import (
    Entry,
    Rebased,
    entries_of,
    located_by_content,
    merge_fields,
    rebase,
)
from conversations.redactions import Redactions, applied_to
from conversations.state import Baseline
from conversations.stores.normalized import Change
from flags.phases import StoreName


@dataclass(slots=True)
class SaveState:
    """Make a conversation what a caller's state says, except for what the caller never saw."""

    name: ClassVar[str] = "save"
    document: Document
    baseline: Baseline | None
    needs_rows: bool = False
    needs_values: bool = False
    creates: bool = True
    # Filled by apply(): the entries of the caller's own lists.
    saved_messages: list[Entry | None] = field(default_factory=list)
    saved_items: list[Entry | None] = field(default_factory=list)
    # The others' edits that this save superseded.
    overwritten: list[Entry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    item_digests: list[bytes] = field(default_factory=list)
    # The step log as it is stored then.
    history: list[Any] = field(default_factory=list)

    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = OWN_KEYS + (self.baseline.token if self.baseline else new_token())

    def redact(self, redactions: Redactions) -> None:
        redacted = applied_to(self.document, redactions)
        if redacted is None:
            return
        if self.baseline is not None:
            # What was given before the redaction is found by what stands there since.
            pairs = zip(self.document.messages, redacted.messages, strict=True)
            forms = {digest_of(old): digest_of(new) for old, new in pairs if old is not new}
            self.baseline = self.baseline.with_messages(
                forms.get(digest, digest) for digest in self.baseline.given_messages
            )
        self.document = redacted

    def _entries(self) -> tuple[list[Entry], list[Entry]]:
        messages, items = entries_of(self.document.messages), entries_of(self.document.items)
        self.digests = [entry.digest for entry in messages]
        self.item_digests = [entry.digest for entry in items]
        return messages, items

    def _fields(self, view: View) -> dict[str, Any] | None:
        wanted, current = self.document.fields, view.fields()
        if self.baseline is not None:
            wanted = merge_fields(
                base=self.baseline.field_digests,
                history=(
                    (self.baseline.history_length, self.baseline.field_digests.get(HISTORY, b"")),
                    (
                        self.baseline.stored_history_length,
                        self.baseline.stored_history_digest,
                    ),
                ),
                current=current,
                wanted=wanted,
            )
        self.history = wanted[HISTORY]
        if digest_of([list(wanted.items())]) == digest_of([list(current.items())]):
            return None
        return wanted

    def apply(self, view: View) -> Change:
        messages, items = self._entries()
        change = Change(fields=self._fields(view))
        base = self.baseline
        if base is not None and _is_of(base, view) and self._only_appends(base):
            change.appended = self._appended(base, messages)
        else:
            change.messages = self._changed_messages(view, messages)
        if base is None or not _is_of(base, view) or self.item_digests != base.given_items:
            change.items = self._changed_items(view, items)
        else:
            given = zip(base.item_ids, base.given_items, strict=True)
            self.saved_items = [Entry(digest, identity=place) for place, digest in given]
        return change

    def _only_appends(self, base: Baseline) -> bool:
        return self.digests[: len(base.sequences)] == base.given_messages

    def _appended(self, base: Baseline, messages: list[Entry]) -> list[Entry]:
        """Return what stands behind the given messages; nothing has to be read for it."""
        appended = messages[len(base.sequences) :]
        for number, entry in enumerate(appended):
            entry.key, entry.key_digest = f"{self.token}:{number}", entry.digest
        given = zip(base.sequences, base.given_messages, strict=True)
        self.saved_messages = [Entry(digest, identity=place) for place, digest in given]
        self.saved_messages += appended
        return appended

    def _changed_messages(
        self, view: View, messages: list[Entry]
    ) -> tuple[Sequence[Entry], Sequence[Entry]] | None:
        current, base = view.messages(), self.baseline
        located, gone = located_messages(base, view, current)
        rebased, self.saved_messages = _rebased(
            None if base is None else base.given_messages,
            _places(base, view, () if base is None else base.sequences),
            located,
            messages,
            current,
            token=self.token,
            gone=gone,
            before=0 if base is None else base.messages_before,
        )
        self.overwritten = rebased.overwritten
        return (current, rebased.entries) if differ(current, rebased.entries) else None

    def _changed_items(
        self, view: View, items: list[Entry]
    ) -> tuple[Sequence[Entry], Sequence[Entry]] | None:
        current, base = view.items(), self.baseline
        rebased, self.saved_items = _rebased(
            None if base is None else base.given_items,
            # A removed item that was edited is a new one: its place is that of its neighbours.
            [None] * (0 if base is None else len(base.item_ids)),
            located_items(base, view, current),
            items,
            current,
        )
        return (current, rebased.entries) if differ(current, rebased.entries) else None


def _is_of(base: Baseline, view: View) -> bool:
    """Whether a baseline was taken of exactly what the tables show now."""
    return (
        view.store == StoreName.NORMALIZED
        and base.store == view.store
        and (base.revision, base.version) == (view.revision, view.version)
    )


def _places(base: Baseline | None, view: View, given: Sequence[int]) -> Sequence[int | None]:
    """Return the places that were given, where they still mean the same: in the tables."""
    stable = base is not None and base.store == view.store == StoreName.NORMALIZED
    return [place or None for place in given] if stable else [None] * len(given)


def _rebased(
    given: Sequence[bytes] | None,
    places: Sequence[int | None],
    located: Sequence[Entry | None],
    wanted: Sequence[Entry],
    current: Sequence[Entry],
    *,
    token: str = "",
    gone: Mapping[str, bytes] | None = None,
    before: int = 0,
) -> tuple[Rebased, list[Entry | None]]:
    """Rebase; without a baseline the caller was given everything, and says what the list is."""
    if given is None:
        given, places = [e.digest for e in current], [e.identity for e in current]
        located = current
    rebased = rebase(
        given=given,
        located=located,
        places=places,
        wanted=wanted,
        current=current,
        token=token,
        gone=gone,
        before=before,
    )
    return rebased, located_by_content([e.digest for e in wanted], rebased.entries)
