"""The plain model: which messages a load must, may and must not show.

Messages are slots with a text; every text is unique, so that what a load shows can be traced.
The model knows nothing of stores. It is told where an acknowledged write is safe: what lives
in legacy alone is as safe from old code as legacy ever was (docs/design.md, section 10).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Slot:
    """One message over time: its present text, or None once it was removed."""

    text: str | None
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.text is not None:
            self.texts.append(self.text)

    def become(self, text: str | None) -> None:
        self.text = text
        if text is not None:
            self.texts.append(text)


@dataclass
class Model:
    """The acknowledged content of one conversation."""

    slots: list[Slot] = field(default_factory=list)
    deleted: bool = False
    # Texts about which a load may answer either way, until it has.
    unsure: set[str] = field(default_factory=set)
    # Texts acknowledged while only legacy held them, and slots edited or removed there.
    fragile: set[str] = field(default_factory=set)
    # Order in which texts have been seen: it never changes.
    order: dict[tuple[str, str], bool] = field(default_factory=dict)

    def slot_of(self, text: str) -> Slot:
        return next(slot for slot in self.slots if text in slot.texts)

    @property
    def live(self) -> list[str]:
        return [slot.text for slot in self.slots if slot.text is not None]

    @property
    def known(self) -> set[str]:
        return {text for slot in self.slots for text in slot.texts}

    def append(self, texts: Sequence[str]) -> None:
        self.slots += [Slot(text) for text in texts]

    def edit(self, given: str, text: str) -> None:
        """The later edit wins, and an edit wins over a removal."""
        self.slot_of(given).become(text)

    def remove(self, given: str) -> None:
        """A removal is of the text that was seen: an edit since then wins."""
        slot = self.slot_of(given)
        if slot.text == given:
            slot.become(None)

    def legacy_only(self, touched: Collection[str]) -> None:
        """Note what was acknowledged while only legacy held it."""
        self.fragile |= set(touched)

    def safe(self, touched: Collection[str] | None = None) -> None:
        """Everything acknowledged (None), or what was touched, is in the tables now."""
        self.fragile -= self.fragile.copy() if touched is None else set(touched)

    def old_write(self, texts: Collection[str], *, overwrites: bool) -> None:
        """Old code wrote these texts: what legacy alone held, it may have undone."""
        if not overwrites:
            return
        for text in self.fragile:
            slot = self.slot_of(text)
            self.unsure |= {*slot.texts}
        for text in texts:
            slot = self.slot_of(text)
            if slot.text != text and self.fragile & set(slot.texts):
                self.unsure |= set(slot.texts)

    def delete(self) -> None:
        self.deleted = True
        for slot in self.slots:
            slot.text = None
        self.unsure.clear()
        self.fragile.clear()

    def check(self, shown: Sequence[str], *, window: int | None = None) -> None:
        """Compare with what a load showed; `window` is how many it was asked for."""
        doubled = {text for text in shown if list(shown).count(text) > 1}
        assert not doubled, f"doubled: {doubled}"
        unknown = set(shown) - self.known
        assert not unknown, f"never acknowledged: {unknown}"
        must = {text for text in self.live if text not in self.unsure}
        forbidden = self.known - set(self.live) - self.unsure
        wrong = forbidden & set(shown)
        assert not wrong, f"back from the dead: {wrong}"
        if window is None:
            missing = must - set(shown)
            assert not missing, f"lost: {missing}"
        else:
            assert len(shown) <= window
            if len(shown) < window:
                missing = must - set(shown)
                assert not missing, f"lost: {missing}"
        for earlier, later in pairwise(shown):
            assert not self.order.get((later, earlier)), f"order changed: {earlier}, {later}"
            self.order[earlier, later] = True

    def seen(self, shown: Sequence[str]) -> None:
        """After a whole load: what it showed of the unsure is there."""
        for text in self.unsure & set(shown):
            slot = self.slot_of(text)
            if slot.text == text:
                continue
            if slot.text in shown:
                # Two edits of one message, where messages have no identity: both are there.
                slot.texts.remove(text)
                self.slots.append(Slot(text))
            else:
                slot.text = text
        self.unsure -= set(shown)
