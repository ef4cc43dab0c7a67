"""Stores of conversations that others make, each through its own public API, beside ours.

None of them is a dependency: those that can be imported are measured, the others are named.
"""

from benchmarks.peers.known import NAMES, peers

__all__ = ["NAMES", "peers"]
