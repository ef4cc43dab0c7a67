"""The floor: the same rows by one hand-written statement each, giving equal Python objects.

It locks by owner and revision as `save_state` does, keeps order, keys and digests, and does
nothing else: it knows no phases, no legacy, no tombstones, no redactions and no context items,
compares nothing, and gives no state that could be saved by another process.
"""

from config.bench.floors.connecting import bare_floor, floor_here, prepared
from config.bench.floors.shared import Floor, Held, Refused

__all__ = ["Floor", "Held", "Refused", "bare_floor", "floor_here", "prepared"]
