"""Conversations of AI assistants, kept in tables of their own."""
