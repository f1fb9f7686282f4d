"""Published ways to prune in one step without tuning, each written once after its paper.

``chains`` finds the plain chains of a network and narrows them; ``merging``, ``lbyl`` and ``folding`` need no data and
work on chains; ``ridge`` needs inputs and works wherever linear layers or convolutions read the channels.
"""

from rivals.chains import Chain, Rival, find_chains, prune_chains
from rivals.folding import fold
from rivals.lbyl import spread
from rivals.merging import merge
from rivals.ridge import prune_with_ridge

__all__ = ["Chain", "Rival", "find_chains", "fold", "merge", "prune_chains", "prune_with_ridge", "spread"]
