"""The memory of AI assistants: context items, metadata and legacy chunks."""
