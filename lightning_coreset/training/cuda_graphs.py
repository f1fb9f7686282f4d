"""Captured CUDA graphs, which cannot follow a change of shapes."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn


def check_not_captured(model: nn.Module) -> None:
    """Refuse a model that ``torch.cuda.make_graphed_callables`` has captured, or a part of which it has.

    Its graphs go on with the memory of the tensors as they were, whatever becomes of the parameters: nothing would
    fail, and nothing would be right. (``torch.compile(mode="reduce-overhead")`` captures anew what has changed.)

    Raises:
        MisconfigurationException: If there is such a module.
    """
    for name, module in model.named_modules():
        # It leaves no other trace than a function of its own in place of the method.
        if "make_graphed_callables" in getattr(vars(module).get("forward"), "__qualname__", ""):
            raise MisconfigurationException(
                f"Expected modules without captured CUDA graphs but got {name or type(module).__name__!r}, captured by "
                "torch.cuda.make_graphed_callables: its graph would go on with the memory of the unpruned parameters. "
                "Capture it after training, or use torch.compile(module, mode='reduce-overhead') instead."
            )
