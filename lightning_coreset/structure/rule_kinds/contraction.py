"""Products with a weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.ops.einsum import contract
from lightning_coreset.structure.propagation import Propagation


@dataclass(frozen=True)
class Contraction:
    """A product of a tensor with a weight, as ``torch.einsum`` writes it, and a bias that may be added.

    The result must be that product exactly, for the mathematics of coresets takes the weight for that of a layer.

    Args:
        notation: As for ``torch.einsum``, with two operands and ``->``: ``"...k,mk->...m"`` for a Linear. Every letter
            that only one operand has is in the result.
        operands: The positions of both operands among the operator's arguments.
        weight: The position of the weight among its arguments, one of ``operands``.
        bias: The position of the bias, one number for each channel of the result; ``None`` without one.

    Raises:
        ValueError: If the notation cannot be read, or the positions do not fit each other.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Contraction, find_groups, register_rule
        >>> @torch.library.custom_op("shop::linear", mutates_args=())
        ... def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ...     return x @ weight.T + bias
        >>> class Fused(nn.Linear):
        ...     def forward(self, x):
        ...         return linear(x, self.weight, self.bias)
        >>> net = nn.Sequential(Fused(4, 8), nn.ReLU(), Fused(8, 2))
        >>> with register_rule(torch.ops.shop.linear, Contraction("...k,mk->...m", weight=1, bias=2)):
        ...     [(group.name, group.size) for group in find_groups(net, torch.randn(1, 4))]
        [('0', 8)]
    """

    notation: str
    operands: tuple[int, int] = (0, 1)
    weight: int = 1
    bias: int | None = None

    def __post_init__(self) -> None:
        if self.weight not in self.operands or self.bias in self.operands or len(set(self.operands)) != 2:
            raise ValueError(
                f"Expected two operands, one of them the weight, and another argument as the bias, but got operands "
                f"{self.operands}, weight {self.weight} and bias {self.bias}."
            )
        first, second, out = self._parts()
        fits = (
            all(letter.isalpha() for letter in first + second + out)
            and all(len(set(part)) == len(part) for part in (first, second, out))
            and set(first) ^ set(second) <= set(out) <= set(first) | set(second)
            and self.notation.count("...") == (2 if self._dotted()[2] else 0)
        )
        if not fits:
            raise ValueError(
                f"Expected a product of two operands in einsum notation, such as '...k,mk->...m', but got "
                f"{self.notation!r}."
            )

    def _parts(self) -> tuple[str, str, str]:
        """The letters of both operands and of the result, without the dots."""
        operands, arrow, out = self.notation.replace(" ", "").partition("->")
        parts = [*operands.split(","), out]
        if not arrow or len(parts) != 3:
            return "", "", "-"
        first, second, out = (part.removeprefix("...") for part in parts)
        return first, second, out

    def _dotted(self) -> list[bool]:
        """Whether dimensions are left out in front of each part."""
        return [part.startswith("...") for part in self.notation.replace(" ", "").replace("->", ",").split(",")]

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        given = list(call.arguments.values())
        first, second = (given[place] for place in self.operands)
        bias = given[self.bias] if self.bias is not None else None
        if len(call.results) != 1 or call.written or len(call.tensors) != 2 + (bias is not None):
            raise NotImplementedError("it is not a product of two tensors")
        if not propagation.info(given[self.weight]).constant:
            raise NotImplementedError("its weight is computed from the input")
        (out,), notation = call.results, self._for(first, second)
        if out.shape != _shape(notation, first, second):
            raise NotImplementedError("the shape of its result is not that of the product")
        contract(propagation, first, second, notation, out, self._placed(propagation, bias, notation, out))

    def _for(self, first: Tensor, second: Tensor) -> str:
        """The notation for these operands, with letters for the dots."""
        parts = self._parts()
        used = {letter for part in parts for letter in part}
        spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in used]
        names = []
        dotted = self._dotted()
        for part, dots, tensor in zip(parts[:2], dotted[:2], (first, second), strict=True):
            lead = "".join(spare[: tensor.dim() - len(part)]) if dots else ""
            if len(lead) + len(part) != tensor.dim():
                raise NotImplementedError("an operand has another number of dimensions")
            names.append(lead + part)
        lead = max((name[: len(name) - len(part)] for name, part in zip(names, parts, strict=False)), key=len)
        return f"{names[0]},{names[1]}->{lead if dotted[2] else ''}{parts[2]}"

    def _placed(self, propagation: Propagation, bias: Tensor | None, notation: str, out: Tensor) -> Tensor | None:
        """The bias along the dimension of the result that the weight makes."""
        if bias is None:
            return None
        names, _, letters = notation.partition("->")
        own, other = names.split(",") if self.weight == self.operands[0] else names.split(",")[::-1]
        made = [letters.index(letter) for letter in own if letter in letters and letter not in other]
        if len(made) != 1 or bias.shape != (out.shape[made[0]],):
            raise NotImplementedError("its bias is not one number for each channel of the result")
        if made[0] == out.dim() - 1:
            return bias
        shape = [1] * out.dim()
        shape[made[0]] = -1
        placed, info = bias.view(shape), propagation.info(bias)
        axes = tuple(axis.with_labels(axis.labels.view(shape)) for axis in info.channel_labels)
        propagation.set_info(placed, TensorInfo(axes, info.constant, info.direct, info.producer_paths))
        return placed


def _shape(notation: str, first: Tensor, second: Tensor) -> tuple[int, ...]:
    names, _, out = notation.partition("->")
    sizes: dict[str, int] = {}
    for letters, tensor in zip(names.split(","), (first, second), strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NotImplementedError("its operands do not fit the notation")
    return tuple(sizes[letter] for letter in out)
