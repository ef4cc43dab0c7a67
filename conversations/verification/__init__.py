"""Verifying that the stores hold what their numbers say: by digests, and by the data itself.

`verify` looks at what is named, or at everything, in this process. `runs` does it at scale: whole
or in a sample, in batches that several workers share and that are resumed, and once more for
what was written meanwhile. What is reported is ids, kinds and places, never content.
"""

from conversations.verification.checking import (
    FAILURES,
    IN_ORDER,
    MISMATCHES,
    Kind,
    Verified,
    differences,
    unverified,
    verify,
)

__all__ = [
    "FAILURES",
    "IN_ORDER",
    "MISMATCHES",
    "Kind",
    "Verified",
    "differences",
    "unverified",
    "verify",
]
