"""The methods by which channels are chosen, as small frozen records of their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Reconstruction:
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
class Sensitivity:
    """The paper's coreset: importance sampling by sensitivity, the next layer reweighted (arXiv 2008.08316).

    Attributes:
        sampler: ``"distinct"`` draws with replacement until enough distinct channels came up, as the authors' code
            does; ``"draws"`` draws exactly as many times as channels are wanted, as the theorem does (fewer distinct
            ones come out); ``"pps"`` fixes the size and has the least variance.
        input_radius: Bound on the norm of a layer's input. It cancels out for ReLU.
    """

    sampler: Literal["distinct", "draws", "pps"] = "distinct"
    input_radius: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler not in ("distinct", "draws", "pps"):
            raise ValueError(f"Expected sampler to be 'distinct', 'draws' or 'pps' but got {self.sampler!r}.")
        if not self.input_radius > 0:
            raise ValueError(f"Expected input_radius to be positive but got {self.input_radius}.")


@dataclass(frozen=True)
class Magnitude:
    """Keep the channels whose filters have the largest norm; a heuristic, to compare with.

    Attributes:
        p: 1 or 2, the norm.
    """

    p: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Expected p to be 1 or 2 but got {self.p!r}.")


@dataclass(frozen=True)
class Random:
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
    if method not in _BY_NAME:
        raise ValueError(
            f"Expected method to be one of {sorted(_BY_NAME)} or an instance of Reconstruction, "
            f"Sensitivity, Magnitude or Random, but got {method!r}."
        )
    return _BY_NAME[method]()


def method_name(method: Method) -> str:
    """The name by which a plan reports a method."""
    name = type(method).__name__.lower()
    if isinstance(method, Sensitivity):
        return f"{name} ({method.sampler})"
    return f"{name} (L{method.p})" if isinstance(method, Magnitude) else name
