"""Attacks on what is to be proven: inputs with another prediction, and with a large change of outputs.

Shapes: S samples, R starts for each, C outputs of a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_coreset.agreement.attack import ascend
from lightning_coreset.agreement.networks import Networks


class Attack:
    """Looks for counterexamples in balls.

    Args:
        networks: The networks, with scores ``(1, C)``.
        starts: For each sample.
        steps: Gradient steps from each.
        seed: Of the starts.
    """

    def __init__(self, networks: Networks, starts: int, steps: int, seed: int) -> None:
        self.networks, self.starts, self.steps, self.seed = networks, starts, steps, seed
        self.tape = networks.joined.tape

    def keeps_class(self, centers: Tensor, node: int, prediction: Tensor) -> Tensor:
        """Whether no input was found for which the scores of a node are largest for another class, ``(S,)``."""
        (scores,) = self.tape.run(centers, [node])
        others = scores[:, 0].scatter(1, prediction[:, None], -torch.inf).argsort(dim=1, descending=True)
        ranks = torch.arange(self.starts, device=centers.device) % (others.shape[1] - 1)
        aims, own = others[:, ranks].flatten()[:, None], prediction.repeat_interleave(self.starts)[:, None]

        def margin(outputs: Tensor) -> Tensor:
            return (outputs[:, 0].gather(1, aims) - outputs[:, 0].gather(1, own))[:, 0]

        found = self._outputs(centers, node, margin)
        return (found.argmax(dim=2) == prediction[:, None]).all(dim=1)

    def largest_change(self, centers: Tensor) -> Tensor:
        """The largest magnitude found of any output's change, ``(S,)``."""
        node = self.networks.joined.change
        (at_center,) = self.tape.run(centers, [node])
        order = at_center[:, 0].abs().argsort(dim=1, descending=True)
        ranks = torch.arange(self.starts, device=centers.device) // 2 % order.shape[1]
        signs = at_center[:, 0].gather(1, order[:, ranks]).sign().flatten()
        aims = order[:, ranks].flatten()[:, None]
        aimed = torch.arange(len(aims), device=centers.device) % 2 == 1

        def change(outputs: Tensor) -> Tensor:
            return torch.where(aimed, signs * outputs[:, 0].gather(1, aims)[:, 0], outputs[:, 0].abs().amax(dim=1))

        return self._outputs(centers, node, change).abs().amax(dim=(1, 2))

    def _outputs(self, centers: Tensor, node: int, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Outputs of a node at the inputs that were found, (S, R, C)."""
        settings = {"starts": self.starts, "steps": self.steps, "seed": self.seed}
        points = ascend(self.tape, node, objective, centers, self.networks.radius, **settings)
        (found,) = self.tape.run(points.flatten(0, 1), [node])
        return found[:, 0].unflatten(0, points.shape[:2])
