"""The command of the bench."""
