"""Real processes against one conversation."""
