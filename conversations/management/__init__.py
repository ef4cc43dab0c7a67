"""Management commands of `conversations`."""
