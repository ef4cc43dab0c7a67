"""A stable share of the conversations, the same in every process, run and version. Pure."""

from __future__ import annotations

from hashlib import blake2b


def share_of(conversation_id: str) -> float:
    """Return the place of a conversation in [0, 1), by a hash of its id alone.

    A fifth of the conversations is below 0.2, and is part of those below 0.3. The place is the
    uppermost 53 bits of blake2b-64, so that rounding never gives 1.
    """
    digest = blake2b(conversation_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(digest, "big") >> 11) / 2**53)
