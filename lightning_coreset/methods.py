"""The methods by which channels are chosen, as small frozen records of their options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias


class _Options:
    """What the methods share: LightningCLI writes and reads the class of their options.

    This is no dataclass itself, because jsonargparse takes a class of nothing but dataclasses for a mere group of
    values, whose class it does not write into a configuration: ``Random()`` would come back as another method.
    """


@dataclass(frozen=True)
class Reconstruction(_Options):
    """The channels that can best stand in for the others, and the weights with which they do, in closed form.

    Deterministic and without data: the expected squared error of the next layer's outputs is minimised under a
    Gaussian law of the activations, which BatchNorms tell or which is carried from layer to layer.

    Attributes:
        rounds: Rounds of the backward elimination. With 16 the error is within 1% of dropping one channel at a time.
        ridge: Regularisation, as a part of the mean diagonal of the moments. From 1e-8 to 1e-2 it makes no difference;
            1e-3 keeps the new weights small.
    """

    rounds: int = 16
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"Expected rounds to be at least 1 but got {self.rounds}.")
        if not self.ridge > 0:
            raise ValueError(f"Expected ridge to be positive but got {self.ridge}.")


@dataclass(frozen=True)
class Sensitivity(_Options):
    """The paper's coreset: importance sampling by sensitivity, the next layer reweighted (arXiv 2008.08316).

    Attributes:
        sampler: ``"distinct"`` draws with replacement until enough distinct channels came up, as the authors' code
            does; ``"draws"`` draws exactly as many times as channels are wanted, as the theorem does (fewer distinct
            ones come out); ``"pps"`` fixes the size and has the least variance.
            With ``epsilon`` it is ``"draws"``, else ``"distinct"`` unless given.
        input_radius: Bound on the norm of a layer's input. It cancels out for ReLU.
        epsilon: The error to guarantee instead of a size: every group is drawn as often as the theorem asks, and with
            probability ``1 - delta`` no input of norm at most ``input_radius`` moves any coordinate of the next layer's
            outputs by more than this (a coordinate is one output and one kernel position; the bound is about one
            group at one event). No pruning ratio is solved for then. Groups for which the theorem asks for as many
            draws as they have channels, and groups without a coreset form, stay whole.
        delta: The probability with which the guarantee may fail, for each group.
    """

    sampler: Literal["distinct", "draws", "pps"] | None = None
    input_radius: float = 1.0
    epsilon: float | None = None
    delta: float = 0.05

    def __post_init__(self) -> None:
        if self.sampler is None:
            object.__setattr__(self, "sampler", "distinct" if self.epsilon is None else "draws")
        if self.sampler not in ("distinct", "draws", "pps"):
            raise ValueError(f"Expected sampler to be 'distinct', 'draws' or 'pps' but got {self.sampler!r}.")
        if not self.input_radius > 0:
            raise ValueError(f"Expected input_radius to be positive but got {self.input_radius}.")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(f"Expected epsilon to be a positive number but got {self.epsilon}.")
        if not 0 < self.delta < 1:
            raise ValueError(f"Expected delta to lie between 0 and 1 but got {self.delta}.")
        if self.epsilon is not None and self.sampler != "draws":
            raise ValueError(f"Expected sampler 'draws' with epsilon, as the theorem has it, but got {self.sampler!r}.")


@dataclass(frozen=True)
class Magnitude(_Options):
    """Keep the channels whose filters have the largest norm; a heuristic, to compare with.

    Attributes:
        p: 1 or 2, the norm.
    """

    p: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Expected p to be 1 or 2 but got {self.p!r}.")


@dataclass(frozen=True)
class Random(_Options):
    """Keep random channels, to compare with."""


Method: TypeAlias = Reconstruction | Sensitivity | Magnitude | Random
MethodName: TypeAlias = Literal["reconstruction", "sensitivity", "magnitude", "random"]

_BY_NAME = {"reconstruction": Reconstruction, "sensitivity": Sensitivity, "magnitude": Magnitude, "random": Random}


def as_method(method: Method | str) -> Method:
    """The options of a method given by name; options pass.

    Raises:
        ValueError: If there is no method of that name.
    """
    if isinstance(method, (Reconstruction, Sensitivity, Magnitude, Random)):
        return method
    if not isinstance(method, str) or method not in _BY_NAME:
        raise ValueError(
            f"Expected method to be one of {sorted(_BY_NAME)} or an instance of Reconstruction, "
            f"Sensitivity, Magnitude or Random, but got {method!r}."
        )
    return _BY_NAME[method]()


def chooses_sizes(method: Method) -> bool:
    """Whether a method decides itself how many channels stay."""
    return isinstance(method, Sensitivity) and method.epsilon is not None


def method_name(method: Method) -> str:
    """The name by which a plan reports a method."""
    name = type(method).__name__.lower()
    if isinstance(method, Sensitivity):
        return f"{name} ({method.sampler})" if method.epsilon is None else f"{name} (epsilon={method.epsilon:g})"
    return f"{name} (L{method.p})" if isinstance(method, Magnitude) else name
