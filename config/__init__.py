"""The sample host project: settings, URLs and demo. Not in the wheel."""
