"""A host that keeps the conversations of its tenants apart in the admin."""
