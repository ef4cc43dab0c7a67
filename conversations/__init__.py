"""Conversations of AI assistants, kept in normalised tables."""
