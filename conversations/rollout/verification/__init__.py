"""Verify that the stores hold what their numbers promise: by digests, and by the data itself.

`verify` looks at the named conversations, or at all, in this process. `runs` does it at scale: of
all or of a sample, resumable, in batches that several workers share, and again for conversations
that changed meanwhile. Reports hold ids, kinds and places, never content.
"""

from conversations.rollout.verification.kinds import FAILURES, IN_ORDER, MISMATCHES, Kind, Verified
from conversations.rollout.verification.one import unverified, verify

__all__ = [
    "FAILURES",
    "IN_ORDER",
    "MISMATCHES",
    "Kind",
    "Verified",
    "unverified",
    "verify",
]
