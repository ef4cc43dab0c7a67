"""One mutation of a conversation, one file."""
