"""Migrations of the host app."""
