"""Tests of the three admins."""
