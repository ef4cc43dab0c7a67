"""A stable share of the conversations, the same in every process, run and version. Pure."""

from __future__ import annotations

from hashlib import blake2b


def share_of(conversation_id: str) -> float:
    """Return where a conversation stands in [0, 1), by a hash of its id alone.

    What is below 0.2 is a fifth of the conversations, and part of what is below 0.3. The
    uppermost 53 bits of blake2b-64, so that no rounding ever gives 1.
    """
    digest = blake2b(conversation_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(digest, "big") >> 11) / 2**53)
