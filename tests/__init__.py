"""Tests of django-conversation-store."""
