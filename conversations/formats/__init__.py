"""Conversations in files: our own lossless JSON Lines, and the chats of other products."""

from conversations.formats.bulk_import import TOGETHER
from conversations.formats.chats import chat_record
from conversations.formats.exporting import NotExported, export_lines
from conversations.formats.files import Line, lines_of, open_for_writing
from conversations.formats.lossless import (
    ImportOutcome,
    Result,
    import_lines,
    import_records,
)
from conversations.formats.ownership import Owners, user_key
from conversations.formats.readers import Conversation, read_conversations
from conversations.formats.reading import BadLine, Read, opened, read_records
from conversations.formats.records import FORMAT, Place, Record

__all__ = [
    "FORMAT",
    "TOGETHER",
    "BadLine",
    "Conversation",
    "ImportOutcome",
    "Line",
    "NotExported",
    "Owners",
    "Place",
    "Read",
    "Record",
    "Result",
    "chat_record",
    "export_lines",
    "import_lines",
    "import_records",
    "lines_of",
    "open_for_writing",
    "opened",
    "read_conversations",
    "read_records",
    "user_key",
]
