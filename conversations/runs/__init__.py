"""Walks over everything at scale, in batches that several workers share and that are resumed.

A run walks over the keys that there were when it began. A worker allots itself the next range
(that is committed), and then walks over it in one transaction with the batch's own record, so a
batch is done or it is not. Whoever finds a batch that nobody holds takes it over, with a new
generation: a worker that was paused meanwhile finds another generation, and does nothing.

What is done with a conversation is a `Task`: `conversations.sync.runs` carries it over,
`conversations.verification.runs` verifies it.
"""
