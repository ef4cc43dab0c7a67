"""The foreign app."""
