"""Tests of conversations.rollout."""
