"""Which store reads and which stores write, by waffle switches."""
