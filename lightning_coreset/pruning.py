"""Everything without a Trainer: one call that finds, plans and removes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_coreset.methods import Method, MethodName, as_method
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Request, Unit, layer_inputs, make_plan
from lightning_coreset.structure import Example, ExampleInputs, analyse
from lightning_coreset.surgery import apply_changes
from lightning_coreset.verification import verified


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    pruning_ratio: float = 0.5,
    *,
    unit: Unit = "params",
    method: Method | MethodName = "reconstruction",
    ignore: Sequence[str] = (),
    include_residual: bool = False,
    seed: int = 0,
    check: bool = True,
    certify: bool = False,
    input_radius: float | None = None,
) -> PruningPlan:
    """Prune a network in place, in one go.

    Channels are removed from layers bottom to top; each group's next layer is reweighted so that it approximates what
    it computed from all channels (Mussay et al., arXiv 2008.08316). ``Parameter`` objects stay the same, so an
    optimizer keeps its references; its state must be sliced along, as ``CoresetPruningCallback`` does in training.

    Args:
        model: Any network; it is changed in place. Its training flags, buffers and the global random state are left
            as they were.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``, on its
            device; a small batch is enough. Nothing but the structure is learnt from it.
        pruning_ratio: The fraction of the model's ``unit`` that shall go, in [0, 1). Every group loses the same share
            of its channels, solved to the nearest whole channel. ``Sensitivity(epsilon=...)`` chooses sizes by the
            error instead: the ratio is then only reported.
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates) or ``"channels"`` (removable
            ones).
        method: How channels are chosen: ``"reconstruction"`` (closed-form, deterministic, keeps most accuracy),
            ``"sensitivity"`` (the paper's coreset, with its guarantee for any input), ``"magnitude"`` or ``"random"``
            (to compare with), or an instance such as ``Sensitivity(sampler="pps")``. Groups that are no sum of one
            layer's activated channels are ranked by norms; the plan says so.
        ignore: Shell patterns of module names, such as ``"encoder.*"``, whose output channels all stay.
        include_residual: Whether channels coupled by residual additions may go as well; the paper prunes inside
            blocks only.
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
        What was done: sizes before and after, per group, and what was skipped and why. ``print(plan)`` is a table.

    Raises:
        ValueError: If the ratio is outside [0, 1), ``input_radius`` is not a positive number, a pattern matches no
            module, the model has nothing to prune (with the reason per layer), or ``example_inputs`` is of another
            type. The model is unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = prune(model, torch.randn(1, 16), 0.5)
        >>> model[0].out_features, plan.params_before, plan.params_after
        (32, 1738, 874)
    """
    request = Request(pruning_ratio, unit, as_method(method), ignore, include_residual, seed, input_radius)
    example = Example.of(example_inputs)
    structure = analyse(model, example)
    if check:
        structure = verified(model, structure, example)
    inputs = layer_inputs(model, example) if certify else None
    plan = make_plan(model, structure, request, inputs=inputs)
    apply_changes(model, plan.changes, plan.attributes)
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
