"""How far a pruned network provably agrees with the original: through all layers, for all inputs of a ball.

Both networks are written down as operations on one input (``recording``, ``joining``), whose activations are replaced
by lines below and above (``relaxations``, ``bounding``), so that linear functions of outputs are bounded backward
through all layers (``backward``). An attack (``attack``) shows how far the bounds are from the truth at most.
"""

from __future__ import annotations

from lightning_coreset.agreement.certified import certified_agreement, output_change
from lightning_coreset.agreement.results import Agreement, OutputChange, SampleAgreement

__all__ = ["Agreement", "OutputChange", "SampleAgreement", "certified_agreement", "output_change"]
