"""Where one conversation stands, before any content is read or written."""
