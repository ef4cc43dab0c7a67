"""Right and wrong uses of the public API, which mypy checks; see tests/storage/test_typing.py."""
