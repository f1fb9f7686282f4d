"""Which groups fail the self-check, and what is said about them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lightning_coreset.structure import ChannelGroup, Example, Structure
from lightning_coreset.verification.trial import Trial, first_line


def verified(model: nn.Module, structure: Structure, example: Example) -> Structure:
    """The structure without the groups that fail the self-check, with a warning that names them."""
    failures = failing_groups(model, structure.groups, example)
    if failures:
        warnings.warn(describe_failures(failures), stacklevel=4)  # where `prune` was called
    return structure.without(failures)


def describe_failures(failures: Mapping[str, str]) -> str:
    """A warning that names the groups that failed, each with the reason."""
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
    return f"The channels of these layers are not pruned, since a trial on a copy failed:\n{reasons}"


def failing_groups(model: nn.Module, groups: Sequence[ChannelGroup], example: Example) -> dict[str, str]:
    """Try the removal of channels on copies of a model.

    All groups are tried at once. Where that fails, halves of them are tried, down to the single groups that fail.

    Args:
        model: The network; it is not changed.
        groups: What ``find_groups`` found in it.
        example: How to run it. It is run on these inputs and on others of the same shapes.

    Returns:
        The names of the groups that fail, each with the reason in words. Where the model cannot be copied or its copy
        cannot be run, as when it does not fit into memory, nothing is tried, and a warning says so.
    """
    if not groups:
        return {}
    with torch.inference_mode(False):
        try:
            trial = Trial(model, example)
            failures = trial.failing(groups)
            passed = [group for group in groups if group.name not in failures]
            return failures | trial.without_effect(passed)
        # No memory for a copy, a module that cannot be copied, a run that needs the original.
        except Exception as error:
            message = f"A copy of the model cannot be run ({type(error).__name__}: {first_line(error)})"
            warnings.warn(f"{message}, so channels are pruned without a trial.", stacklevel=3)
            return {}
