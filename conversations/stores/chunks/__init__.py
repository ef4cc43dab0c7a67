"""Old code's two tables, memory_chunks and memory_metadata, as a store."""
