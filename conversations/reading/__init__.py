"""Load one conversation from a store that is current, as of one revision."""

from conversations.reading.existence import exists
from conversations.reading.load import read
from conversations.reading.load_stepwise import RACES, at_truth
from conversations.reading.loaded import EVERYTHING, Loaded, Selection

__all__ = ["EVERYTHING", "RACES", "Loaded", "Selection", "at_truth", "exists", "read"]
