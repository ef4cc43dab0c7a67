"""Tests of conversations.rollout.retirement."""
