"""Optional integrations. Each module needs its own package, and names it if it is missing."""
