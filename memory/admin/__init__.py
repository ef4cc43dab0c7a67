"""The admin of context items, metadata and legacy chunks: for reading."""

from memory.admin.models import ChunkAdmin, ContextItemAdmin, MetadataAdmin

__all__ = ["ChunkAdmin", "ContextItemAdmin", "MetadataAdmin"]
