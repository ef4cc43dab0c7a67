"""A host app with the usual shapes of a Django host's own chats; docs/migrating.md shows them."""
