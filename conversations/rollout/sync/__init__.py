"""Bring one store of each conversation to the truth: the backfill, both ways.

`sync` walks over all conversations, or the named ones, in this process. `runs` does it at scale:
resumable, in batches that several workers share, and that wait for traffic.
"""

from conversations.rollout.sync.one import Action, Synced, Target, sync

__all__ = ["Action", "Synced", "Target", "sync"]
