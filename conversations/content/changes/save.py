"""Save a whole state: only the caller's own changes since the load are written."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar

from conversations.content.baseline import Baseline
from conversations.content.changes.base import OWN_KEYS, View, differ, new_token
from conversations.content.changes.change import Addition, At, Change
from conversations.content.changes.locate import locate_items, locate_messages
from conversations.content.digests import DIGEST_BYTES, digest_of, roll_on, split
from conversations.content.document import HISTORY, Document, field_digests, fields_digest
from conversations.content.entries import Entry
from conversations.content.field_merge import merge_fields
from conversations.content.merge import Rebased, locate_by_content, rebase
from conversations.content.redaction import Redactions, applied_to
from conversations.content.validation import Checked
from flags.phases import StoreName


@dataclass(slots=True)
class SaveState:
    """Make a conversation equal to a caller's state, except for content the caller never saw."""

    name: ClassVar[str] = "save"
    checked: InitVar[Checked]
    baseline: Baseline | None
    needs_rows: bool = False
    needs_values: bool = False
    creates: bool = True
    # Filled by apply(): how many of the caller's first messages kept their places, and the entries
    # of the messages behind them. The same for the items.
    kept: int = 0
    saved_messages: Sequence[Entry | None] = ()
    kept_items: int = 0
    saved_items: Sequence[Entry | None] = ()
    # The edits of others that this save superseded.
    overwritten: list[Entry] = field(default_factory=list)
    # The step log as this save stores it.
    history: list[Any] = field(default_factory=list)

    token: str = field(init=False)
    field_digests: dict[str, bytes] = field(init=False)
    document: Document = field(init=False)
    # The digests of the messages, and of the context items, joined.
    digests: bytes = field(init=False)
    item_digests: bytes = field(init=False)

    def __post_init__(self, checked: Checked) -> None:
        self.token = OWN_KEYS + (self.baseline.token if self.baseline else new_token())
        self.document = checked.document
        self.digests, self.item_digests = checked.message_digests, checked.item_digests
        self.field_digests = field_digests(self.document.fields)

    def redact(self, redactions: Redactions) -> None:
        redacted = applied_to(self.document, redactions)
        if redacted is None:
            return
        if self.baseline is not None:
            # A message loaded before its redaction is found by its redacted form.
            pairs = zip(self.document.messages, redacted.messages, strict=True)
            forms = {digest_of(old): digest_of(new) for old, new in pairs if old is not new}
            self.baseline = self.baseline.with_messages(
                forms.get(digest, digest) for digest in self.baseline.given_messages
            )
        self.document, self.digests = redacted, b"".join(map(digest_of, redacted.messages))

    def saved_sequences(self) -> list[int]:
        """Return the sequences of the caller's messages after the save; 0 for a removed one."""
        kept = [] if self.baseline is None else self.baseline.sequences[: self.kept]
        return [*kept, *(entry.identity or 0 if entry else 0 for entry in self.saved_messages)]

    def saved_item_ids(self) -> list[int]:
        """Return the sequences of the caller's items after the save; 0 for a removed one."""
        kept = [] if self.baseline is None else self.baseline.item_ids[: self.kept_items]
        return [*kept, *(entry.identity or 0 if entry else 0 for entry in self.saved_items)]

    def addition(self) -> Addition | None:
        base = self.baseline
        if base is None or base.store != StoreName.NORMALIZED or not base.revision:
            return None
        try:
            version = bytes.fromhex(base.version)
        except ValueError:
            # The version came through a queue, and is no digest of the tables.
            return None
        appends = self.digests.startswith(base.message_digests)
        if not appends or self.item_digests != base.item_digests:
            return None
        self.kept_items = len(base.item_ids)
        self.history = self.document.fields[HISTORY]
        changed = self._changed_fields(base)
        appended = self._appended(base)
        if not appended and not changed:
            return None
        return Addition(
            appended,
            rolled=roll_on(version, [entry.digest for entry in appended]),
            fields=self.document.fields,
            changed=changed,
            fields_digest=fields_digest(self.field_digests),
            baseline=At(base.revision, version, fields_digest(base.field_digests)),
        )

    def _changed_fields(self, base: Baseline) -> frozenset[str]:
        """Return the names of the fields whose value or place differs from the baseline."""
        given, wanted = base.field_digests, self.field_digests
        changed = {name for name, digest in wanted.items() if given.get(name) != digest}
        changed |= given.keys() - wanted.keys()
        # Only fields unknown to the tables have an order of their own.
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
        if base is None or not _is_of(base, view):
            change.messages = self._changed_messages(view)
            change.items = self._changed_items(view)
            return change
        if self.digests.startswith(base.message_digests):
            change.appended = self._appended(base)
        else:
            change.messages = self._changed_messages(view)
        if self.item_digests == base.item_digests:
            self.kept_items, self.saved_items = len(base.item_ids), ()
        else:
            change.items = self._changed_items(view)
        if change.messages is None and (self.kept, len(base.item_ids)) == view.counts:
            # Nothing was left out, so the caller holds everything.
            fields = view.fields() if change.fields is None else change.fields
            change.document = Document(dict(fields), self.document.messages, self.document.items)
        return change

    def _appended(self, base: Baseline) -> list[Entry]:
        """Return the messages behind the loaded ones, without reading anything."""
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
        located, gone = locate_messages(base, view, current)
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
            # An edited item that others removed is new: it goes beside its neighbours.
            [None] * (0 if base is None else len(base.item_ids)),
            locate_items(base, view, current),
            items,
            current,
        )
        return (current, rebased.entries) if differ(current, rebased.entries) else None


def _entries(values: Sequence[Any], digests: bytes) -> list[Entry]:
    return [Entry(digest, value) for digest, value in zip(split(digests), values, strict=True)]


def _is_of(base: Baseline, view: View) -> bool:
    """Whether a baseline was taken of exactly what the tables show now, by their numbers."""
    if view.store != StoreName.NORMALIZED or base.revision != view.revision:
        return False
    if base.store == view.store:
        return base.version == view.version
    # At one revision both stores hold the same. Where all of it was given, and the tables number
    # it by place as legacy does, the numbers given are the tables' as well.
    return view.numbered_by_place and all(
        numbers == array("q", range(1, count + 1))
        for numbers, count in zip((base.sequences, base.item_ids), view.counts, strict=True)
    )


def _places(base: Baseline | None, view: View, given: Sequence[int]) -> Sequence[int | None]:
    """Return the places of the load where they still mean the same: in the tables."""
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
    """Rebase. Without a baseline, the caller's list replaces the current one."""
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
    return rebased, locate_by_content([e.digest for e in wanted], rebased.entries)
