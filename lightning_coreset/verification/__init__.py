"""The self-check: on a copy, removing channels must do exactly what zeroing their consumers does.

Run before a group is pruned for the first time. It finds what the analysis cannot know: a width written as a number in
the network's own code, for which the group is refused, or kept as a number in an attribute, which then changes with it.
"""

from __future__ import annotations

from lightning_coreset.verification.check import (
    describe_failures,
    failing_groups,
    tried_groups,
    verified,
    with_unproven,
)
from lightning_coreset.verification.removal import NOT_FINITE

__all__ = ["NOT_FINITE", "describe_failures", "failing_groups", "tried_groups", "verified", "with_unproven"]
