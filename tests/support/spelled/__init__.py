"""A host whose users are named by texts, in a column that takes two spellings for one key."""
