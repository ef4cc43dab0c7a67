"""Management commands of `flags`."""
