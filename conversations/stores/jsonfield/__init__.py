"""A host's own model with a JSON column, as a store."""
