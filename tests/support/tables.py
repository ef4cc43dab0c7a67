"""The tables as a store of whole documents, through the public write and load of new_only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from conversations import reading
from conversations.content.changes import SaveState
from conversations.content.document import Document
from conversations.content.validation import Checked
from conversations.routing.standing import decide
from conversations.stores.normalized import NormalizedStore
from conversations.stores.types import Stored, Summary
from conversations.writing.write import write
from flags.phases import StoreName


class Tables:
    """What the conformance suite asks of every store."""

    name = StoreName.NORMALIZED.value
    exact = True

    def load(self, conversation_id: str) -> Stored | None:
        found = reading.at_truth(conversation_id, decide().carrying(), owner=None)
        row = None if found is None else found[0]
        if row is None:
            return None
        return Stored(
            NormalizedStore().document(row),
            owner=row.user_id and str(row.user_id),
            version=str(row.revision),
            updated_at=row.updated_at,
        )

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        operation = SaveState(Checked.of(document), None)
        write(conversation_id, operation, owner=owner, decision=decide().carrying())
        return ""

    def delete(self, conversation_id: str) -> bool:
        return NormalizedStore().delete(conversation_id)

    def list(
        self,
        *,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[Summary]:
        return NormalizedStore().list(owner=owner, before=before, limit=limit)

    def token(self, conversation_id: str, known: str = "") -> str:
        return ""
