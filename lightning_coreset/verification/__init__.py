"""The self-check: on a copy, removing channels must do exactly what zeroing their consumers does.

Run before a group is pruned for the first time. It finds what the analysis cannot know, such as a width written as a
number in the network's own code.
"""

from __future__ import annotations

from lightning_coreset.verification.check import describe_failures, failing_groups, verified

__all__ = ["describe_failures", "failing_groups", "verified"]
