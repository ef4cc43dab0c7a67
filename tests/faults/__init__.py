"""Faults put into real databases: statements that fail, stores that are down."""
