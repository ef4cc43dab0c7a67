"""SQL that every store needs: cursors, and many rows in one statement."""
