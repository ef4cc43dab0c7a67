"""Tests of conversations.content."""
