"""The content of one conversation, and how edits of it combine. Pure: no database, no clock."""
