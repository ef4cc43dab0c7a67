"""Reads from a replica, proved on a streaming pair of PostgreSQL servers."""
