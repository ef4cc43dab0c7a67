"""Loading one conversation from a store that is current, as of one revision."""

from conversations.reading.at_once import read
from conversations.reading.loads import Loaded, Selection
from conversations.reading.steps import RACES, at_truth

__all__ = ["RACES", "Loaded", "Selection", "at_truth", "read"]
