"""Optional integrations. Each module needs its own package, and says which where it is missing."""
