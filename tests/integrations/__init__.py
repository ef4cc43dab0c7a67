"""Tests of conversations.integrations."""
