"""Tests of conversations.routing."""
