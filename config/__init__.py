"""The sample host project: settings, URLs, demo and benchmark. Not in the wheel."""
