"""A state machine that plays every operation in every phase against a plain model."""
