"""The table that the examples print: a network before and after pruning."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_coreset import count_macs


@dataclass(frozen=True)
class Result:
    """Size, cost and accuracy of a network.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-accumulates of one sample.
        accuracy: On the test set, in [0, 1].
    """

    parameters: int
    macs: int
    accuracy: float

    @classmethod
    def of(cls, network: nn.Module, example_inputs: Tensor | dict[str, Tensor], accuracy: float) -> Result:
        """Count the parameters and MACs of a network."""
        return cls(sum(p.numel() for p in network.parameters()), count_macs(network, example_inputs), accuracy)


def show(title: str, before: Result, after: Result) -> None:
    """Print a table of two results."""
    table = Table("", title=title, title_justify="left")
    for head in ("before", "after", "after / before"):
        table.add_column(head, justify="right")
    for what, style in (("parameters", ",d"), ("macs", ",d"), ("accuracy", ".1%")):
        old, new = getattr(before, what), getattr(after, what)
        table.add_row(what.replace("macs", "MACs"), f"{old:{style}}", f"{new:{style}}", f"{new / old:.2f}")
    Console().print(table)


def quiet() -> None:
    """Silence messages of Lightning that do not matter here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The data are in memory, so worker processes would only cost time.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # The networks are too small to gain from a GPU.
    warnings.filterwarnings("ignore", message="GPU available but not used")
    # Lightning up to 2.6 uses a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
