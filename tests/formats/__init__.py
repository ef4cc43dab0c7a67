"""Tests of conversations.formats."""
