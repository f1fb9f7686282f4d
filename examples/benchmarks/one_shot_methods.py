"""The methods that ``one_shot.py`` compares, and what each of them has to do: the same widths for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from contenders import Shapes, check_shapes, shapes, shapes_after
from rivals import Rival, fold, merge, prune_chains, prune_with_ridge, spread
from torch import Tensor, nn

from lightning_coreset import Magnitude, Random, Reconstruction, plan_pruning, prune
from lightning_coreset.methods import Method
from lightning_coreset.structure import Heads

Inputs = Tensor | Mapping[str, Tensor]
CALIBRATION = 512
"""How many samples the methods get that see inputs."""


@dataclass(frozen=True)
class Job:
    """What is pruned, and how far.

    Attributes:
        example: A small batch of inputs.
        batches: Inputs for methods that calibrate.
        keep: The fraction of its channels that every group keeps.
        include_residual: Whether channels coupled by additions are pruned.
        sizes: The channels that each group keeps, by the layer that names it, in the order of the network.
        shapes: The shapes of all tensors afterwards.
        chains: Whether each group has one producer and one consumer, as some methods need.
        hidden: Whether the groups are the hidden channels of MLPs.
        heads: What attention loses, whole heads or dimensions within them.
    """

    example: Inputs
    batches: Sequence[Inputs]
    keep: float
    include_residual: bool
    sizes: Mapping[str, int]
    shapes: Shapes
    chains: bool = False
    hidden: bool = False
    heads: Heads = "whole"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Inputs,
        batches: Sequence[Inputs],
        keep: float,
        *,
        rule: str = "*",
        include_residual: bool = False,
        chains: bool = False,
        hidden: bool = False,
        heads: Heads = "whole",
    ) -> Job:
        """All groups that a rule selects lose the same fraction of their channels."""
        plan = plan_pruning(
            model,
            example,
            {rule: 1 - keep},
            method="magnitude",
            include_residual=include_residual,
            heads=heads,
            self_check=heads == "within",  # which tells by what numbers heads are viewed
        )
        sizes = {one.name: one.channels_after for one in plan.groups if one.channels_after < one.channels_before}
        wanted = shapes_after(plan, shapes(model))
        return cls(example, batches, keep, include_residual, sizes, wanted, chains, hidden, heads)

    def check(self, name: str, model: nn.Module) -> None:
        """Raise an error unless the network has the widths that are compared."""
        check_shapes(name, model, self.shapes)


Prune = Callable[[nn.Module, Job, int], None]
"""Prunes a network in place, with a seed."""


@dataclass(frozen=True)
class Contender:
    """A method, and whether it sees inputs."""

    prune: Prune
    sees_inputs: bool = False


def contenders(job: Job) -> dict[str, Contender]:
    """The methods that can do a job."""
    found = {
        "random": Contender(partial(by_method, Random())),
        "L1 norm": Contender(partial(by_method, Magnitude(1))),
        "L2 norm": Contender(partial(by_method, Magnitude(2))),
    }
    if job.chains:
        found |= {
            "LBYL": Contender(partial(by_rival, spread)),
            "neuron merging": Contender(partial(by_rival, merge)),
            "model folding": Contender(partial(by_rival, partial(fold, repair=False))),
            "model folding, repaired": Contender(partial(by_rival, fold)),
        }
    if job.heads == "whole":
        found["L2 norm, then ridge (GRAIL)"] = Contender(partial(by_ridge, False), sees_inputs=True)
    if job.hidden:
        found["energy, then affine ridge (CORP)"] = Contender(partial(by_ridge, True), sees_inputs=True)
    return found | ours()


def ours() -> dict[str, Contender]:
    """The reconstruction of this package, with each source of moments."""
    methods = {
        "reconstruction, default": Reconstruction(),
        "reconstruction, closed form": Reconstruction(moments="closed_form"),
        "reconstruction, synthetic, refined": Reconstruction(moments="synthetic", refine=True),
        "reconstruction, batches, refined": Reconstruction(moments="batches", refine=True, samples=CALIBRATION),
    }
    return {name: Contender(partial(by_method, one), one.moments == "batches") for name, one in methods.items()}


def by_method(method: Method, model: nn.Module, job: Job, seed: int) -> None:
    """Prune with a method of this package."""
    sees_inputs = isinstance(method, Reconstruction) and method.moments == "batches"
    prune(
        model,
        job.example,
        pruning_ratio=dict.fromkeys(job.sizes, 1 - job.keep),
        method=method,
        include_residual=job.include_residual,
        heads=job.heads,
        seed=seed,
        self_check=job.heads == "within",
        data=job.batches if sees_inputs else None,
    )


def by_rival(rival: Rival, model: nn.Module, job: Job, seed: int) -> None:
    """Prune chain after chain."""
    assert isinstance(job.example, Tensor)
    prune_chains(rival, model, job.example, job.sizes)


def by_ridge(affine: bool, model: nn.Module, job: Job, seed: int) -> None:
    """Prune group after group, and calibrate."""
    prune_with_ridge(
        model,
        job.example,
        job.sizes,
        1 - job.keep,
        job.batches,
        affine=affine,
        include_residual=job.include_residual,
        seed=seed,
    )
