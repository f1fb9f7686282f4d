"""How much each channel can matter to the layer above, for any input in a ball: the paper's sensitivities.

Shapes: N channels, d inputs of the producer, O outputs of the consumers, K positions of their kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation, largest_magnitude


def sensitivities(producers: Tensor, consumers: Tensor, activation: Activation, *, input_radius: float = 1.0) -> Tensor:
    r"""Upper bounds on the largest contribution of each channel, over all outputs and all inputs in a ball.

    .. math:: s_p = \max_o \|W_{o,p,:}\|_2 \cdot \sup_{|z| \le \tilde\beta \|P_p\|} |\phi(z)|,
        \qquad \tilde\beta = \sqrt{\beta^2 + 1}

    after Mussay et al., arXiv 2008.08316, section 4, with signed weights and any activation. For ReLU the second factor
    is :math:`\tilde\beta \|P_p\|`, so the probabilities :math:`s_p / \sum s` do not depend on the radius there.

    Args:
        producers: Rows that compute the channels, ``(N, d + 1)``, the bias last, a BatchNorm between them and the
            activation folded in.
        consumers: Weights that read the channels, ``(O, N, K)``, those of several consumers stacked along ``O``.
        activation: The activation between the two.
        input_radius: The radius :math:`\beta` of the ball of inputs, in units of the producer's input. 1 stands for
            normalised inputs, the paper's setting.

    Returns:
        The sensitivities, float64 ``(N,)``, not negative.

    Raises:
        ValueError: If the shapes do not fit, the radius is not a positive number, or a weight is infinite or NaN.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> producers = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
        >>> consumers = torch.tensor([[[1.0], [7.0]], [[-2.0], [7.0]]])
        >>> sensitivities(producers, consumers, find_activation("relu")) / 2**0.5
        tensor([10.,  0.], dtype=torch.float64)

    """
    _check_shapes(producers, consumers)
    norms = torch.linalg.vector_norm(producers, dim=1, dtype=torch.float64)
    return sensitivities_from_norms(norms, _largest_slice_norms(consumers), activation, input_radius=input_radius)


def sensitivities_from_norms(
    producers: Tensor, consumers: Tensor, activation: Activation, *, input_radius: float = 1.0
) -> Tensor:
    """:func:`sensitivities` of a layer whose norms are known, all that they depend on.

    Args:
        producers: The norms of the rows that compute the channels, float64 ``(N,)``.
        consumers: For every channel the largest norm, over the outputs, of what reads it, float64 ``(N,)``.
        activation: The activation between the two.
        input_radius: The radius of the ball of inputs.

    Returns:
        The sensitivities, float64 ``(N,)``, not negative.

    Raises:
        ValueError: If the radius is not a positive number, or a norm is infinite or NaN.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> norms = torch.tensor([5.0, 0.0], dtype=torch.float64), torch.tensor([2.0, 7.0], dtype=torch.float64)
        >>> sensitivities_from_norms(*norms, find_activation("relu")) / 2**0.5
        tensor([10.,  0.], dtype=torch.float64)

    """
    if not (math.isfinite(input_radius) and input_radius > 0):
        raise ValueError(f"Expected `input_radius` to be a positive number but got {input_radius}.")
    _check_finite("producers", producers)
    _check_finite("consumers", consumers)
    return consumers * largest_magnitude(activation, producers * math.sqrt(input_radius**2 + 1))


def _largest_slice_norms(consumers: Tensor) -> Tensor:
    if consumers.shape[2] == 1:  # one reduction straight over the weights, with no copy in float64
        return torch.linalg.vector_norm(consumers[:, :, 0], ord=math.inf, dim=0).double()
    return torch.linalg.vector_norm(consumers, dim=2, dtype=torch.float64).amax(dim=0)


def _check_shapes(producers: Tensor, consumers: Tensor) -> None:
    if producers.ndim != 2 or consumers.ndim != 3 or consumers.shape[1] != producers.shape[0]:
        raise ValueError(
            "Expected `producers` of shape (N, d + 1) and `consumers` of shape (O, N, K) but got "
            f"{tuple(producers.shape)} and {tuple(consumers.shape)}."
        )
    if 0 in consumers.shape:
        raise ValueError(f"Expected at least one channel, output and position but got {tuple(consumers.shape)}.")


def _check_finite(name: str, norms: Tensor) -> None:
    # A norm in float64 of finite weights cannot overflow, so looking at the norms spares a pass over the weights.
    if not bool(norms.isfinite().all()):
        wrong = (~norms.isfinite()).nonzero().flatten().tolist()
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise ValueError(f"Expected finite weights but `{name}` holds NaN or infinity in channels {shown}.")
