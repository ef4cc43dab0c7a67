"""One suite for every store: what the protocol promises holds for each of them."""
