"""Bringing one store of each conversation to the truth: the backfill, both ways.

`sync` walks over everything, or over what is named, in this process. `runs` does it at scale:
in batches that several workers share, that are resumed, and that make way for traffic.
"""

from conversations.sync.carrying import Action, Synced, Target, sync

__all__ = ["Action", "Synced", "Target", "sync"]
