"""Configs of a host for apps that are not its own."""

from waffle.apps import WaffleConfig

from memory.apps import MemoryConfig


class HostsWaffle(WaffleConfig):
    """The switches under another name."""

    verbose_name = "Switches"


class HostsMemory(MemoryConfig):
    """One of our apps under another name."""

    verbose_name = "What the assistant remembers"
