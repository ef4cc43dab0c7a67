"""What AI assistants remember: context items, metadata and legacy chunks."""
