"""What is proven of two networks at once on balls of inputs: how far outputs differ, and whether predictions agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._arguments import is_whole_number
from lightning_coreset.agreement.counterexamples import Attack
from lightning_coreset.agreement.margins import change_bounds, keeps_class
from lightning_coreset.agreement.networks import Networks, followed
from lightning_coreset.agreement.results import Agreement, OutputChange, SampleAgreement


def output_change(
    original: nn.Module, pruned: nn.Module, inputs: Tensor | Iterable[Any], *, radius: float = 0.0
) -> OutputChange:
    r"""Bound what pruning changes in every output, for all inputs near given ones, through all layers.

    Both networks, in evaluation mode, are replaced by linear functions above and below them, layer by layer (CROWN:
    Zhang et al. 2018, DeepPoly: Singh et al. 2019), for all :math:`x` with :math:`\|x - x_0\|_2 \le r` around each
    sample. Neurons that pruning kept are bounded by their differences. "Mathematics" derives it.

    Args:
        original: The network before pruning, which returns one tensor of shape ``(batch, ...)``.
        pruned: The network after pruning, on the same device. Both stay as they are.
        inputs: Samples ``(n, ...)``, or an iterable of batches, alone or as the first of a tuple with labels. For all
            inputs of norm up to ``r`` pass a sample of zeros, with ``r`` as the radius.
        radius: :math:`r`, in the units of the inputs as the network gets them. With 0 the bounds are the changes at the
            samples, up to rounding.

    Returns:
        Bounds for the networks in real arithmetic; rounding of the bounds themselves is accounted for, that of a
        network which is run in float32 is not. They grow quickly with the radius and the depth, and are useless where
        they exceed the outputs. Time grows as the square of the number of neurons whose activation is not linear on
        its interval.

    Raises:
        ValueError: If an argument is not what it should be, the outputs' shapes differ, or a network has operators that
            are neither affine in the data nor activations whose turning points are known (attention, softmax,
            LayerNorm, products of two activations, comparisons), makes NaN or infinity, or mixes the samples of a
            batch. Max pooling is covered, but loosely. Branches on numbers that a network takes out of torch
            (``tolist``, ``numpy``) are not seen unless one of the inputs takes another.

    Example:
        >>> from lightning_coreset import output_change
        >>> a, b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = a.weight.copy_(torch.tensor([[3.0, 4.0]])), b.weight.zero_()
        >>> output_change(a, b, torch.zeros(1, 2), radius=2.0).high.round(decimals=6)
        tensor([[10.]], dtype=torch.float64)
    """
    with followed(original, pruned, inputs, radius) as networks:
        parts = [change_bounds(networks.joined, networks.bounds(centers)) for centers in networks.batches()]
        low, high = (torch.cat(part) for part in zip(*parts, strict=True))
    return OutputChange(low, high, networks.radius)


def certified_agreement(
    original: nn.Module,
    pruned: nn.Module,
    inputs: Tensor | Iterable[Any],
    *,
    radius: float = 0.0,
    restarts: int = 8,
    steps: int = 30,
    seed: int = 0,
) -> Agreement:
    r"""How many predictions of a classifier pruning provably leaves alone, at given inputs and in balls around them.

    A sample counts as certified if the pruned network is proven to give the class that the original network gives to
    the sample :math:`x_0`, to every :math:`x` with :math:`\|x - x_0\|_2 \le r`. That does not say that the original
    network gives it on the whole ball: the same is asked of it beside, and where both are proven the two networks agree
    at every input of the ball. An attack (projected gradient ascent) looks for counterexamples, so that the truth lies
    between the two shares.

    Args:
        original: As for :func:`output_change`, but with outputs ``(batch, classes)``, whose largest is the prediction.
        pruned: As there.
        inputs: As there.
        radius: As there.
        restarts: Starts of the attack for each sample, each aimed at another class as far as there are.
        steps: Gradient steps from each.
        seed: Of the starts.

    Returns:
        The shares, the bound on the change of the outputs, and the same for every sample.

    Raises:
        ValueError: As in :func:`output_change`; also if outputs are not ``(batch, classes)`` with two classes or
            more, or ``restarts`` or ``steps`` is not a positive whole number.

    Example:
        >>> import copy
        >>> from lightning_coreset import certified_agreement, prune
        >>> _ = torch.manual_seed(0)
        >>> network, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(40, 8)
        >>> pruned = copy.deepcopy(network)
        >>> plan = prune(pruned, x, 0.2)
        >>> result = certified_agreement(network, pruned, x, radius=0.01)
        >>> 0.5 < result.certified <= result.attacked
        True
    """
    for name, value in (("restarts", restarts), ("steps", steps)):
        if not is_whole_number(value) or value < 1:
            raise ValueError(f"Expected {name} to be a positive whole number but got {value!r}.")
    if not is_whole_number(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"Expected seed to be a whole number between 0 and 2**63 but got {seed!r}.")
    with followed(original, pruned, inputs, radius) as networks:
        if len(networks.output_shape) != 1 or networks.output_shape[0] < 2:
            raise ValueError(
                f"Expected outputs of shape (batch, classes) with two classes or more but got one of shape "
                f"{networks.output_shape} for a sample. For other outputs use output_change."
            )
        attack = Attack(networks, restarts, steps, seed)
        parts = [_agreement(networks, centers, attack) for centers in networks.batches()]
    return Agreement(networks.radius, SampleAgreement.joined(parts))


def _agreement(networks: Networks, centers: Tensor, attack: Attack) -> SampleAgreement:
    """What is proven and found on the balls around some samples."""
    joined, bounds = networks.joined, networks.bounds(centers)
    (scores,) = joined.tape.run(centers, [joined.first])
    prediction = scores[:, 0].argmax(dim=1)
    low, high = change_bounds(joined, bounds)
    return SampleAgreement(
        prediction,
        certified=keeps_class(joined, bounds, joined.second, prediction),
        attacked=attack.keeps_class(centers, joined.second, prediction),
        original_certified=keeps_class(joined, bounds, joined.first, prediction),
        original_attacked=attack.keeps_class(centers, joined.first, prediction),
        change=torch.maximum(high, -low).amax(dim=1),
        found_change=attack.largest_change(centers),
    )
