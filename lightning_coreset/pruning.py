"""Everything without a Trainer: one call that finds, plans and removes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from lightning_coreset.methods import MethodLike, as_method
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    Allocation,
    PruningRatio,
    Request,
    Rule,
    Unit,
    idle_rules,
    make_plan,
    measure_input_norms,
    why_nothing_goes,
)
from lightning_coreset.structure import Example, ExampleInputs, analyse
from lightning_coreset.surgery import apply_changes
from lightning_coreset.verification import verified


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    pruning_ratio: PruningRatio = 0.5,
    *,
    unit: Unit = "params",
    method: MethodLike = "reconstruction",
    allocation: Allocation = "uniform",
    ignore: Sequence[Rule] = (),
    only: Sequence[Rule] = (),
    include_residual: bool = False,
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    seed: int = 0,
    check: bool = True,
    certify: bool = False,
    input_radius: float | None = None,
) -> PruningPlan:
    """Prune a network in place, in one go.

    Channels are removed from layers bottom to top; each group's next layer is reweighted so that it approximates what
    it computed from all channels (Mussay et al., arXiv 2008.08316). ``Parameter`` objects stay the same, so an
    optimizer keeps its references; its state must be sliced along, as ``CoresetPruningCallback`` does in training.
    :func:`plan_pruning` tells beforehand what this will do.

    Layers are named by *rules*: a shell pattern of qualified module names such as ``"encoder.*"``, a compiled regular
    expression that matches the whole name, or a type of modules such as ``nn.Conv2d``. A rule means the layers that
    make channels; channels that go together are named by any of their layers.

    Args:
        model: Any network; it is changed in place. Its training flags, buffers and the global random state are left
            as they were.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``, on its
            device; a small batch is enough. Nothing but the structure is learnt from it.
        pruning_ratio: The fraction of the model's ``unit`` that shall go, in [0, 1), solved to the nearest whole
            channel. Or a mapping from rules to fractions: every group that a rule names loses this fraction of its own
            channels, whatever the unit, and the others stay whole. ``Sensitivity(epsilon=...)`` chooses sizes by the
            error instead: the ratio is then only reported.
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates) or ``"channels"`` (removable
            ones).
        method: How channels are chosen: ``"reconstruction"`` (closed-form, deterministic, keeps most accuracy),
            ``"sensitivity"`` (the paper's coreset, with its guarantee for any input), ``"magnitude"`` or ``"random"``
            (to compare with), or an instance such as ``Sensitivity(sampler="pps")``. Groups that are no sum of one
            layer's activated channels are ranked by norms; the plan says so.
        allocation: Which groups lose more, where the ratio is a number: ``"uniform"`` takes the same share of every
            group's channels; ``"error"`` takes channels where the expected error of the next layer, as a part of its
            signal, grows least for each unit that goes; ``"global"`` goes by one ranking over all groups
            (``"magnitude"`` and ``"random"`` only).
        ignore: Rules for layers whose output channels all stay, whatever other rules name them.
        only: Rules for the layers that may lose output channels; all others stay.
        include_residual: Whether channels coupled by residual additions may go as well; the paper prunes inside
            blocks only.
        round_to: Layers are cut to multiples of so many channels. A layer with fewer stays whole; attention heads
            are cut to the counts whose channels make a multiple.
        min_channels: No layer is cut to fewer channels.
        max_ratio: No layer loses more than this fraction of its channels.
        seed: Seed of the random choices. The global generator is never touched.
        check: Whether to try on a copy, with random parameters, that removing channels of a group does just what
            zeroing their consumers does. Groups that fail, such as those whose width is written as a number in the
            network's code, are left alone with a warning that names them. Costs a copy of the model and about ten
            runs of it.
        certify: Whether to compute certificates: for every group a proven bound on the error that its coreset makes in
            the next layer, whatever the input, and the largest error that gradient ascent finds. They stand in the
            plan and change nothing in it. Seconds for layers of hundreds of channels, minutes for thousands.
        input_radius: For certificates: a bound on the norm of the network's own input as its first layer sees it (of
            one patch, where that is a convolution). Layers in a chain above it get a proven radius; all others, and all
            layers without this number, the largest norm measured on the example inputs, and the plan says so.

    Returns:
        What was done, with sizes before and after, per group, and what was skipped and why. ``print(plan)`` is a table.

    Raises:
        ValueError: If an argument is of another type or out of its range, a rule matches no module, two rules ask for
            different ratios of channels that go together, the model has nothing to prune (with the reason per layer),
            or more is asked than can go (with what holds it). The model is unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = prune(model, torch.randn(1, 16), 0.5)
        >>> model[0].out_features, plan.params_before, plan.params_after
        (32, 1738, 874)
    """
    request = Request(
        pruning_ratio,
        unit,
        as_method(method),
        ignore,
        include_residual,
        seed,
        input_radius,
        only=only,
        allocation=allocation,
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
    )
    plan = _planned(model, example_inputs, request, check=check, certify=certify)
    apply_changes(model, plan.changes, plan.attributes)
    return plan


def plan_pruning(
    model: nn.Module,
    example_inputs: ExampleInputs,
    pruning_ratio: PruningRatio = 0.5,
    *,
    unit: Unit = "params",
    method: MethodLike = "reconstruction",
    allocation: Allocation = "uniform",
    ignore: Sequence[Rule] = (),
    only: Sequence[Rule] = (),
    include_residual: bool = False,
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    seed: int = 0,
    check: bool = True,
    certify: bool = False,
    input_radius: float | None = None,
) -> PruningPlan:
    """Tell what :func:`prune` would do, and change nothing.

    Takes the arguments of :func:`prune` and raises what it raises.

    Returns:
        The plan that :func:`prune` would carry out. ``print(plan)`` is a table.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import plan_pruning
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> print(plan_pruning(model, torch.randn(1, 16), {"0": 0.75}, round_to=8, method="magnitude"))
        group  channels  kept  params  MACs    error  method
        ------------------------------------------------------------
        0      64 -> 16  25%   -1,296  -1,248         magnitude (L2)
        params removed: 74.57% of the original (requested 74.57%)
        params 1,738 -> 442, sparsity 74.57%
        MACs per sample 1,664 -> 416
        not pruned: 2 reaches the network's output
        >>> model[0].out_features
        64
    """
    request = Request(
        pruning_ratio,
        unit,
        as_method(method),
        ignore,
        include_residual,
        seed,
        input_radius,
        only=only,
        allocation=allocation,
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
    )
    return _planned(model, example_inputs, request, check=check, certify=certify)


def _planned(
    model: nn.Module, example_inputs: ExampleInputs, request: Request, *, check: bool, certify: bool
) -> PruningPlan:
    """The plan, with a warning for all that will not happen; called by what a user calls."""
    example = Example.of(example_inputs)
    request.check_rules(model)  # before the model is run for it
    structure = analyse(model, example)
    if check:
        structure = verified(model, structure, example)
    for message in idle_rules(model, structure, request):
        warnings.warn(message, stacklevel=3)
    inputs = measure_input_norms(model, example) if certify else None
    plan = make_plan(model, structure, request, inputs=inputs)
    if plan.channels_removed == 0 and request.target > 0 and not request.method.chooses_sizes:
        warnings.warn(why_nothing_goes(model, structure, request), stacklevel=3)
    return plan


def count_macs(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """Multiply-accumulates of one sample in all matrix products and convolutions of a network.

    Args:
        model: Any network; it is run once and left as it was.
        example_inputs: As for :func:`prune`; its first tensor's first dimension counts as the batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> count_macs(nn.Linear(16, 10), torch.randn(4, 16))
        160
    """
    return sum(analyse(model, Example.of(example_inputs)).macs.values())
