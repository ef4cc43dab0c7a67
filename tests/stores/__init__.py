"""Tests of conversations.stores and the tables."""
