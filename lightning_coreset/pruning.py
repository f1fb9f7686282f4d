"""Pruning without a Trainer: one call that analyses, plans and removes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_coreset._arguments import check_is_module
from lightning_coreset._calls import level_of_caller, same_arguments_as
from lightning_coreset._deprecated import takes_old_names
from lightning_coreset.checkpoint import make_resizable, write_configs
from lightning_coreset.latency import LatencyLike, compared, is_doubtful, network_latency, why_doubtful
from lightning_coreset.methods import MethodLike
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    Allocation,
    PruningRatio,
    Request,
    Rule,
    Unit,
    as_rules,
    check_data,
    check_flags,
    check_matches,
    goes_less_far,
    idle_rules,
    make_plan,
    measure_input_norms,
    measuring_runs,
    prunable,
    sensible,
    why_less,
    why_nothing_goes,
    why_thin,
    without_unread,
)
from lightning_coreset.state import duplicate
from lightning_coreset.structure import Example, ExampleInputs, Heads, Structure, analyse, warn_of_uncounted
from lightning_coreset.surgery import apply_changes
from lightning_coreset.verification import verified


@takes_old_names
def plan_pruning(
    model: nn.Module,
    example_inputs: ExampleInputs,
    pruning_ratio: PruningRatio | None = None,
    *,
    unit: Unit = "params",
    latency: LatencyLike | None = None,
    allocation: Allocation = "uniform",
    round_to: int = 1,
    min_channels: int = 1,
    max_layer_ratio: float = 1.0,
    ignore: Sequence[Rule] = (),
    only: Sequence[Rule] = (),
    never_run: Sequence[Rule] = (),
    include_residual: bool = False,
    heads: Heads = "whole",
    method: MethodLike = "reconstruction",
    data: Iterable[Any] | None = None,
    seed: int = 0,
    self_check: bool = True,
    change_attributes: bool = True,
    certify: bool = False,
    input_radius: float | None = None,
    verbose: bool = True,
    max_ratio: float | None = None,
    check: bool | None = None,
) -> PruningPlan:
    """Return the plan that :func:`prune` would apply, and change nothing.

    Takes the arguments of :func:`prune` and raises the same errors.

    Returns:
        The plan. ``print(plan)`` shows it as a table.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import plan_pruning
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> print(plan_pruning(model, torch.randn(1, 16), {"0": 0.75}, round_to=8, method="magnitude"))
        group  channels  kept  params    MACs  error  method
        ------------------------------------------------------------
        0      64 -> 16   25%  -1,296  -1,248         magnitude (L2)
        params removed: 74.57% of the original (requested 74.57%)
        params 1,738 -> 442, sparsity 74.57%
        MACs per sample 1,664 -> 416
        not pruned: 2 makes outputs of the network
        >>> model[0].out_features
        64
    """
    request = Request.of(locals())
    check_is_module(model)
    check_flags(self_check=self_check, change_attributes=change_attributes, certify=certify, verbose=verbose)
    request.check_trial(self_check)
    check_data(request.method, data)
    example = Example.of(example_inputs)
    # Cheap, so before the model is run.
    request.check_rules(model)
    check_matches(model, as_rules(never_run, "never_run"), "never_run", second_names=True)
    structure = analyse(model, example, heads=request.heads)
    if self_check:
        structure = verified(model, structure, example, change_attributes=change_attributes, heads=request.heads)
    structure = without_unread(model, structure, request, never_run)
    if request.unit == "latency":
        request = _timed(model, structure, example, request, verbose=verbose)
    for message in idle_rules(model, structure, request):
        warnings.warn(message, stacklevel=level_of_caller())
    request = sensible(model, structure, request)
    if goes_less_far(request):
        warnings.warn(why_less(model, structure, request), stacklevel=level_of_caller())
    inputs = measure_input_norms(model, example) if certify else None
    runs = measuring_runs(model, structure, request.method.measures, [example], data=data, seed=request.seed)
    plan = make_plan(model, structure, request, inputs=inputs, runs=runs)
    sizes = {group.name: group.channels_after for group in plan.groups}
    thin = why_thin(model, structure, request, sizes=sizes)
    if thin is not None:
        warnings.warn(thin, stacklevel=level_of_caller())
    if plan.channels_removed == 0 and request.target > 0 and not request.method.chooses_sizes:
        warnings.warn(why_nothing_goes(model, structure, request), stacklevel=level_of_caller())
    return plan


@same_arguments_as(plan_pruning)
def prune(model: nn.Module, **arguments: Any) -> PruningPlan:  # noqa: D417 -- the Args are those of plan_pruning
    """Prune a network in place, in one step.

    Groups of channels are pruned in network order. The weights of the layers that read a group are replaced so that
    these layers approximate what they computed from all channels (Mussay et al., arXiv 2008.08316). ``Parameter``
    objects stay the same, so an optimizer keeps its references; its state has to be sliced in the same way, as
    ``CoresetPruningCallback`` does during training. :func:`plan_pruning` returns the same plan without applying it.

    The pruned model is resizable (:func:`make_resizable`): its ``state_dict`` says how it was pruned. So does the
    config of a model of Hugging Face transformers.

    Layers are selected by *rules*: a shell pattern for qualified module names such as ``"encoder.*"``, a compiled
    regular expression that matches the whole name, or a module type such as ``nn.Conv2d``. A rule selects layers that
    produce channels; a group of coupled channels is selected if a rule matches any of the layers that produce it.

    Args:
        model: Any network; it is changed in place. Its training flags, buffers and the global random state are
            preserved.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``, on its
            device; a small batch is enough. They are only used to read the structure (and
            to measure norms, for certificates).
        pruning_ratio: The fraction of the model's ``unit`` to remove, in [0, 1), met to the nearest whole channel. Or a
            mapping from rules to fractions: every group that a rule selects loses this fraction of its own channels,
            whatever the unit, and all other groups keep theirs. By default half, or, with a warning, as much as goes if
            no group loses more than half of its channels. ``Sensitivity(epsilon=...)`` chooses the sizes by
            error instead; the ratio is then only reported.
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates), ``"channels"`` (those that
            can be removed) or ``"latency"`` (the seconds of one run on the example inputs, on their device: give a
            batch of the size that counts).
        latency: For ``unit="latency"``: what :func:`measure_latency` returned, the path of a file with it, or a
            function that takes a :class:`LayerShape` and returns the seconds of one call. By default layers are
            measured here, which takes a few seconds. Unless a function tells the times, the pruned network is measured
            in the end, in turns with a copy of it from before.
        allocation: How the removal is distributed over the groups if the ratio is a number. ``"uniform"``: the same
            fraction of every group. ``"error"``: first the channels whose removal increases the expected error of the
            next layer, relative to its signal, least for each unit removed. ``"global"``: one ranking of the channels
            of all groups (only for methods that rank: ``"magnitude"``, ``"random"``, ``Importance``).
        round_to: Channel counts are multiples of this number. A layer with fewer channels is not pruned; the number of
            attention heads is chosen so that their channels are a multiple.
        min_channels: The smallest number of channels that a layer keeps.
        max_layer_ratio: The largest fraction of its channels that a layer loses.
        ignore: Rules for layers that keep all their output channels; they take precedence over all other rules.
        only: Rules for the layers that may lose output channels; all others keep theirs.
        never_run: Rules for modules that nothing ever runs, such as a spare head. Channels that other layers could read
            or make which the example inputs do not run, such as experts that get no row, stay, with a warning.
        include_residual: Whether to prune channels, too, that are coupled by residual additions or normalised by
            LayerNorm, RMSNorm and the like, such as the width of a transformer. Statistics are then taken over the
            channels that stay. The paper only prunes inside blocks.
        heads: What attention loses: ``"whole"`` heads, or dimensions ``"within"`` its heads, of values, and of queries
            with keys. All heads lose as many of these, each its own where nothing that they share, such as rotary
            embeddings, stands in between; the scale of the products stays.
        method: How channels are chosen: ``"reconstruction"`` (closed form, deterministic, best accuracy),
            ``"sensitivity"`` (the paper's coreset, with its guarantee for any input), ``"magnitude"`` or ``"random"``
            (baselines), an instance such as ``Sensitivity(sampler="pps")``, or a function that scores channels, as for
            :class:`Importance`. The first two apply to groups whose next layer is a sum over the activated channels of
            one layer; other groups are ranked by norms, and the plan says so.
        data: For ``method=Reconstruction(moments="batches")``: an iterable of batches, each as ``example_inputs``, such
            as ``(images for images, _ in loader)``. It is read until there are ``samples`` samples.
        seed: Seed of the random choices. The global generator is not used.
        self_check: Whether to test on a copy with random parameters that removing channels of a group has the same
            effect as zeroing the weights that read them. Groups that fail, for example because their width is
            hard-coded, are not pruned, and a warning names them. Costs a copy of the model and about ten runs of it.
        change_attributes: Whether groups that fail this test are tried again with other numbers: integers that modules
            or their configs remember, such as ``self.dim_head``, are changed with the group where that is proven to
            be right. The plan names them (``plan.attributes``). Without ``self_check`` nothing can be proven, or is
            changed.
        certify: Whether to compute certificates: for every group a proven bound, valid for any input, on the error that
            its coreset causes in the next layer, and the largest error that gradient ascent finds. They are reported in
            the plan and do not change it. Takes seconds for layers of hundreds of channels, minutes for thousands.
        input_radius: For certificates: a bound on the norm of the network's input as its first layer reads it (of one
            patch, if this is a convolution). Layers in a chain above it get a proven radius. For all other layers, and
            without this number, the radius is the largest norm measured on the example inputs; the plan says so.
        verbose: Whether to show a progress bar while measuring.
        max_ratio: Old name of ``max_layer_ratio``.
        check: Old name of ``self_check``.

    Returns:
        The plan that was applied: the sizes of every group before and after, and the skipped layers with reasons.
        ``print(plan)`` shows it as a table.

    Raises:
        ValueError: If an argument has the wrong type or is out of range, a rule matches no module, two rules give
            different ratios for one group, the model has no channels that can be pruned (with the reason for each
            layer), or the ratio cannot be reached (with the largest that can, and what prevents more). The model is
            unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = prune(model, torch.randn(1, 16), 0.5)
        >>> model[0].out_features, plan.params_before, plan.params_after
        (32, 1738, 874)
    """
    plan = plan_pruning(model, **arguments)
    # What counts are times of this device, unless a function tells them.
    is_measured = plan.unit == "latency" and not callable(arguments.get("latency"))
    before = duplicate(model) if is_measured and plan.channels_removed else None
    apply_changes(model, plan.changes, plan.attributes)
    if plan.changes:
        write_configs(make_resizable(model))
    return plan if before is None else _measured(plan, before, model, Example.of(arguments["example_inputs"]))


def _timed(model: nn.Module, structure: Structure, example: Example, request: Request, *, verbose: bool) -> Request:
    """The request with the seconds of the network's layers, of those widths that may change."""
    groups, _ = prunable(model, structure, request)
    offered = replace(structure, groups=tuple(groups))
    found = network_latency(model, offered, example, request.timing, verbose=verbose)
    return replace(request, network_latency=found)


def _measured(plan: PruningPlan, before: nn.Module, model: nn.Module, example: Example) -> PruningPlan:
    """The plan with a final measurement, and a warning if that does not confirm it."""
    measured = compared(before, model, example)
    if is_doubtful(plan.reached, measured):
        warnings.warn(why_doubtful(plan.reached, measured), stacklevel=level_of_caller())
    return replace(plan, latency_measured=measured)


def count_macs(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """Multiply-accumulates of one sample in all matrix products and convolutions of a network.

    Args:
        model: Any network; it is run and not changed.
        example_inputs: As for :func:`prune`. The first dimension of the first tensor is the batch.

    Returns:
        The count for one sample, not for the batch. A warning names operators that are not counted.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> count_macs(nn.Linear(16, 10), torch.randn(4, 16))
        160
    """
    check_is_module(model)
    structure = analyse(model, Example.of(example_inputs))
    warn_of_uncounted(structure.uncounted)
    return sum(structure.macs.values())
