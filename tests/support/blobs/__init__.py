"""A host app that keeps one JSON blob per conversation, as other teams do."""
