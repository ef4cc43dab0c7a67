"""Tests of conversations.reading."""
