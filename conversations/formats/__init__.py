"""Conversations in files: our own lossless JSON Lines, and chats of others, in and out."""

from conversations.formats.chats import chat_record
from conversations.formats.files import Line, lines_of, open_for_writing
from conversations.formats.lossless import (
    ImportOutcome,
    Result,
    export_lines,
    import_lines,
    import_records,
)
from conversations.formats.readers import Conversation, read_conversations
from conversations.formats.reading import BadLine, read_records
from conversations.formats.records import FORMAT, Place, Record
from conversations.formats.together import TOGETHER

__all__ = [
    "FORMAT",
    "TOGETHER",
    "BadLine",
    "Conversation",
    "ImportOutcome",
    "Line",
    "Place",
    "Record",
    "Result",
    "chat_record",
    "export_lines",
    "import_lines",
    "import_records",
    "lines_of",
    "open_for_writing",
    "read_conversations",
    "read_records",
]
