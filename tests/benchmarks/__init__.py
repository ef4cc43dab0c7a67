"""The bench: its command, its baseline, and what it measures."""
