"""Walks over everything at scale: resumable, in batches that several workers share.

A run walks over the keys that existed when it began. A worker allots itself the next range, and
commits that. Then it walks over the range in one transaction with the batch's own record, so a
batch is done whole or not at all. A worker takes over a batch that no worker holds, with a new
generation. If the first worker was only paused, it then finds another generation, and does
nothing.

A `Task` is the work on a conversation: `conversations.rollout.sync.runs` carries it over,
`conversations.rollout.verification.runs` verifies it.
"""
