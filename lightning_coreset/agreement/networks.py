"""Both networks, ready for proofs: copied, followed operation by operation, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._arguments import check_is_module, is_number
from lightning_coreset.agreement.bounding import Bounds
from lightning_coreset.agreement.joining import Joined, join
from lightning_coreset.agreement.recording import record
from lightning_coreset.agreement.samples import samples_of
from lightning_coreset.agreement.spreads import Spreads
from lightning_coreset.agreement.twins import Twin

_AT_ONCE = 16
"""Samples that are bounded together."""
_PAIRED_BY = 64
"""Samples by which neurons are paired."""
_AGREES = 1e-8
"""What is written down computes the same as the network up to this, relatively, and up to rounding."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Two networks on one tape, with inputs.

    Attributes:
        joined: The tape.
        samples: Float64 ``(n, 1, ...)``, each with a batch of its own.
        radius: Of the balls around them.
        spreads: What is known of the tape whatever the samples.
    """

    joined: Joined
    samples: Tensor
    radius: float
    spreads: Spreads

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.joined.tape.nodes[self.joined.change].shape[1:]

    def batches(self) -> Iterator[Tensor]:
        """Some samples at a time."""
        yield from self.samples.split(_AT_ONCE)

    def bounds(self, centers: Tensor) -> Bounds:
        """What is proven on the balls around some samples."""
        return Bounds(self.spreads, centers, self.radius)


@contextmanager
def followed(original: nn.Module, pruned: nn.Module, inputs: Any, radius: float) -> Iterator[Networks]:
    """Both networks on one tape; the context is one of plain execution without gradients.

    Raises:
        ValueError: If an argument is not what it should be, or a network cannot be followed.
    """
    check_is_module(original)
    check_is_module(pruned)
    if not is_number(radius) or radius < 0:
        raise ValueError(f"Expected radius to be a number that is not negative but got {radius!r}.")
    twins = Twin.of("original", original), Twin.of("pruned", pruned)
    if twins[0].device != twins[1].device:
        raise ValueError(
            f"Expected both networks on one device but the original is on {twins[0].device} and the pruned one on "
            f"{twins[1].device}."
        )
    with torch.inference_mode(False), twins[0].ready():
        samples = samples_of(inputs, twins[0].device)[:, None]
        tapes = [record(twin, samples[0].clone()) for twin in twins]  # which a network may write into
        shapes = [tape.nodes[tape.outputs[0]].shape for tape in tapes]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected outputs of the same shape but for a sample the original network has {shapes[0]} and the "
                f"pruned one {shapes[1]}. Pass the network before and after pruning."
            )
        if shapes[0][:1] != (1,):
            raise ValueError(
                f"Expected one row of outputs for each sample but for a batch of one the networks return {shapes[0]}. "
                "Keep the first dimension that of the batch."
            )
        joined = join(tapes[0], tapes[1], samples[:_PAIRED_BY])
        for twin, node in zip(twins, (joined.first, joined.second), strict=True):
            _check_followed(twin, joined, node, samples[:_PAIRED_BY], float(radius))
        yield Networks(joined, samples, float(radius), Spreads(joined.tape))


def _check_followed(twin: Twin, joined: Joined, node: int, samples: Tensor, radius: float) -> None:
    """Compare what was written down with the network: on samples, and within balls, all in one batch."""
    if len(samples) == 1:  # a batch of its own does not show what depends on the others
        samples = torch.cat([samples, 1.01 * samples + 0.01 * samples.abs().amax().clamp_min(1e-3)])
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(samples.shape, generator=generator, dtype=torch.float64).to(samples.device)
    moves *= radius / moves[0].numel() ** 0.5
    for points in (samples, samples + moves):
        (written,) = joined.tape.run(points, [node])
        computed = twin.output(points.flatten(0, 1).clone())
        if not bool(computed.isfinite().all()):
            raise ValueError(
                f"Expected finite outputs but for some inputs the {twin.name} network makes NaN or infinity. Leave out "
                "what masks scores with -inf."
            )
        same = len(computed) == len(points) and computed.numel() == written.numel()
        room = _AGREES * written.abs() + joined.tape.rounding * joined.tape.loads(points, node)
        if not same or bool(((written.flatten() - computed.flatten()).abs() > room.flatten()).any()):
            raise ValueError(
                f"Expected the {twin.name} network to compute every sample alike and by itself, in torch's operators, "
                "but for a batch its outputs are not those of its operators for each sample. Outputs that depend on "
                "other samples of the batch, on chance, or on numbers that leave torch cannot be bounded."
            )
