"""Saving a whole state: what the caller changed since the load, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from conversations.changes.locating import located_items, located_messages
from conversations.changes.protocols import OWN_KEYS, View, differ, new_token
from conversations.digests import DIGEST_BYTES, digest_of, roll, split
from conversations.documents import HISTORY, Checked, Document, field_digests, fields_digest
from conversations.fieldmerge import merge_fields
from conversations.merge import Entry, Rebased, located_by_content, rebase
from conversations.redactions import Redactions, applied_to
from conversations.state import Baseline
from conversations.stores.normalized import Addition, At, Change
from flags.phases import StoreName


@dataclass(slots=True)
class SaveState:
    """Make a conversation what a caller's state says, except for what the caller never saw."""

    name: ClassVar[str] = "save"
    checked: Checked
    baseline: Baseline | None
    needs_rows: bool = False
    needs_values: bool = False
    creates: bool = True
    # Filled by apply(): how many of the caller's messages, from the first on, stand where they
    # stood, and the entries of those behind them; the same of the items.
    kept: int = 0
    saved_messages: Sequence[Entry | None] = ()
    kept_items: int = 0
    saved_items: Sequence[Entry | None] = ()
    # The others' edits that this save superseded.
    overwritten: list[Entry] = field(default_factory=list)
    # The step log as it is stored then.
    history: list[Any] = field(default_factory=list)

    token: str = field(init=False)
    field_digests: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.token = OWN_KEYS + (self.baseline.token if self.baseline else new_token())
        self.field_digests = field_digests(self.document.fields)

    @property
    def document(self) -> Document:
        return self.checked.document

    @property
    def digests(self) -> bytes:
        """Return the digests of the messages, joined."""
        return self.checked.message_digests

    @property
    def item_digests(self) -> bytes:
        """Return the digests of the context items, joined."""
        return self.checked.item_digests

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
        digests = b"".join(map(digest_of, redacted.messages))
        self.checked = replace(self.checked, document=redacted, message_digests=digests)

    def saved_sequences(self) -> list[int]:
        """Return the sequences of the caller's messages after the save; 0 of one that is gone."""
        kept = [] if self.baseline is None else self.baseline.sequences[: self.kept]
        return [*kept, *(entry.identity or 0 if entry else 0 for entry in self.saved_messages)]

    def saved_item_ids(self) -> list[int]:
        """Return the sequences of the caller's items after the save; 0 of one that is gone."""
        kept = [] if self.baseline is None else self.baseline.item_ids[: self.kept_items]
        return [*kept, *(entry.identity or 0 if entry else 0 for entry in self.saved_items)]

    def addition(self) -> Addition | None:
        base = self.baseline
        if base is None or base.store != StoreName.NORMALIZED or not base.revision:
            return None
        try:
            version = bytes.fromhex(base.version)
        except ValueError:
            # It came through a queue, and names nothing that the tables hold.
            return None
        if not self._only_appends(base) or self.item_digests != base.item_digests:
            return None
        self.kept_items = len(base.item_ids)
        self.history = self.document.fields[HISTORY]
        changed = self._changed_fields(base)
        appended = self._appended(base)
        if not appended and not changed:
            return None
        return Addition(
            appended,
            rolled=roll(version, [entry.digest for entry in appended]),
            fields=self.document.fields,
            changed=changed,
            fields_digest=fields_digest(self.field_digests),
            baseline=At(base.revision, version, fields_digest(base.field_digests)),
        )

    def _changed_fields(self, base: Baseline) -> frozenset[str]:
        """Return the names of the fields that differ from what was given, or are elsewhere."""
        given, wanted = base.field_digests, self.field_digests
        changed = {name for name, digest in wanted.items() if given.get(name) != digest}
        changed |= given.keys() - wanted.keys()
        # An order of its own have only the fields that the tables do not know.
        return frozenset(changed if list(given) == list(wanted) else changed | wanted.keys())

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
        change = Change(fields=self._fields(view))
        base = self.baseline
        same = base is not None and _is_of(base, view)
        if base is not None and same and self._only_appends(base):
            change.appended = self._appended(base)
        else:
            change.messages = self._changed_messages(view)
        if base is not None and same and self.item_digests == base.item_digests:
            self.kept_items, self.saved_items = len(base.item_ids), ()
        else:
            change.items = self._changed_items(view)
        return change

    def _only_appends(self, base: Baseline) -> bool:
        return self.digests.startswith(base.message_digests)

    def _appended(self, base: Baseline) -> list[Entry]:
        """Return what stands behind the given messages; nothing has to be read for it."""
        self.kept = len(base.sequences)
        values = self.document.messages[self.kept :]
        digests = split(self.digests[self.kept * DIGEST_BYTES :])
        appended = [
            Entry(digest, value, key=f"{self.token}:{number}", key_digest=digest)
            for number, (value, digest) in enumerate(zip(values, digests, strict=True))
        ]
        self.saved_messages = appended
        return appended

    def _changed_messages(self, view: View) -> tuple[Sequence[Entry], Sequence[Entry]] | None:
        current, base = view.messages(), self.baseline
        messages = _entries(self.document.messages, self.digests)
        located, gone = located_messages(base, view, current)
        self.kept = 0
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

    def _changed_items(self, view: View) -> tuple[Sequence[Entry], Sequence[Entry]] | None:
        current, base = view.items(), self.baseline
        items = _entries(self.document.items, self.item_digests)
        self.kept_items = 0
        rebased, self.saved_items = _rebased(
            None if base is None else base.given_items,
            # A removed item that was edited is a new one: its place is that of its neighbours.
            [None] * (0 if base is None else len(base.item_ids)),
            located_items(base, view, current),
            items,
            current,
        )
        return (current, rebased.entries) if differ(current, rebased.entries) else None


def _entries(values: Sequence[Any], digests: bytes) -> list[Entry]:
    return [Entry(digest, value) for digest, value in zip(split(digests), values, strict=True)]


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
