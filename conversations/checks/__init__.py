"""System checks of the settings, the installation and the database; importing registers them."""

from conversations.checks import databases, installation, legacy, prepared, replicas, settings

__all__ = ["databases", "installation", "legacy", "prepared", "replicas", "settings"]
