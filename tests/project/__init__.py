"""Tests of the project's own files."""
