"""What a network remembers from one run to the next: save it, put it back, copy it.

A training step may change anything that its module can reach: buffers, counters, queues, generators, caches, objects of
its own. What runs such a step only to see what it does must leave no trace, and must begin every run alike.
"""

from __future__ import annotations

from lightning_coreset.state.copying import duplicate, ran_out_of_memory
from lightning_coreset.state.freed_memory import FreedMemory, return_freed_memory
from lightning_coreset.state.module_state import ModuleState, restored
from lightning_coreset.state.stand_ins import stand_ins
from lightning_coreset.state.writes import written_arguments

__all__ = [
    "FreedMemory",
    "ModuleState",
    "duplicate",
    "ran_out_of_memory",
    "restored",
    "return_freed_memory",
    "stand_ins",
    "written_arguments",
]
