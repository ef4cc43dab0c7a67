"""Migrations of the foreign app."""
