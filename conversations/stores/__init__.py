"""The stores a conversation can live in, behind one protocol."""
