"""Tests of conversations.writing."""
