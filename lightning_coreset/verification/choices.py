"""Choices that a network makes by comparing numbers: which is the largest, what lies above a threshold, how to round.

Without some channels a network computes the same but for rounding, and yet it may choose otherwise where two numbers
are nearly equal: another proposal, another expert, another code. All that follows differs then, though nothing is
wrong. So in a trial both runs make the same choices, as long as what they choose from is the same but for rounding. If
it is not, since a choice depends on channels that were removed, the runs choose each for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_coreset._compat import DispatchMode
from lightning_coreset.structure.op_call import tensors_among
from lightning_coreset.verification.layers_of_modes import Proceed

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How much two numbers differ at most that differ by rounding alone, relative to the largest of their tensor.

By more than the last digit, since networks are deep; by far less than channels contribute.
"""
_STEPS = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside", "frac", "fmod", "remainder"})
"""Operators with floating-point results that jump."""
_IN_PLACE = frozenset(f"{name}_" for name in (*_STEPS, "eq", "ne", "ge", "gt", "le", "lt"))
_DRAWS = frozenset({"multinomial"})
"""Random operators that compare what they draw with what they are given."""

_Key: TypeAlias = tuple[Any, ...]


def is_choice(function: Any, args: Any, result: Any) -> bool:
    """Whether an operation makes whole numbers, truth values or numbers for Python of floating-point tensors."""
    sort = _sort(function)
    if sort is False or (sort is None and not any(map(_is_discrete, result if type(result) in _MANY else (result,)))):
        return False
    return any(tensor.is_floating_point() for tensor in tensors_among(args))


_MANY = (list, tuple)


def _is_discrete(result: Any) -> bool:
    if isinstance(result, Tensor):
        return not (result.is_floating_point() or result.is_complex())
    return isinstance(result, (int, float))


@cache
def _sort(function: Any) -> bool | None:
    """Whether an operator always chooses, or never does; ``None`` if that depends on the form of its results."""
    name = _name(function)
    if torch.Tag.nondeterministic_seeded in getattr(function, "tags", ()) and name not in _DRAWS:
        return False
    return True if name.removesuffix("_") in _STEPS or name.startswith("fake_quantize") else None


def differ_by_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one form hold the same numbers but for rounding."""
    if one is other:
        return True
    if one.layout is not torch.strided:
        one, other = one.to_dense(), other.to_dense()
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return False
    if not bool(finite.all()):
        if not torch.equal(one[~finite].nan_to_num(nan=0.0), other[~finite].nan_to_num(nan=0.0)):
            return False
        one, other = one[finite], other[finite]
    if one.numel() == 0:
        return True
    return bool((one - other).abs().max() <= _ROUNDING.get(other.dtype, 0.0) * other.abs().max())


class MadeChoices:
    """Notes the choices of a run, with what was chosen from."""

    def __init__(self) -> None:
        self._made: dict[_Key, list[tuple[list[Tensor], Any]]] = {}

    def begin(self) -> None:
        """Begin a run: what was chosen in others is kept."""

    def end(self) -> None:
        """End it."""

    def operation(self, func: Any, args: Any, kwargs: Any, proceed: Proceed) -> Any:
        """Run the operation, and keep copies of what went in and came out."""
        before = _inputs(func, args, kwargs) if _writes(func) else None
        result = proceed(func, args, kwargs)
        if self._is_noted(func, (args, kwargs), result):
            inputs = before or [tensor.clone() for tensor in tensors_among((args, kwargs))]
            self._made.setdefault(_key(func, args, kwargs), []).append((inputs, _copied(result)))
        return result

    _is_noted = staticmethod(is_choice)

    def repeated(self) -> RepeatedChoices:
        """A mode in which another run makes the same choices."""
        return RepeatedChoices({key: list(made) for key, made in self._made.items()})


class RepeatedChoices(DispatchMode):
    """Lets a run choose as another did, where it chooses from the same numbers but for rounding."""

    def __init__(self, made: dict[_Key, list[tuple[list[Tensor], Any]]]) -> None:
        super().__init__()
        self._made = made
        self._functions = {key[0] for key in made}

    def concerns(self, func: Any) -> bool:
        """Whether the other run chose by this operator."""
        return func in self._functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; where it chooses, return what was chosen before."""
        kwargs = kwargs or {}
        known = self._made.get(_key(func, args, kwargs)) if func in self._functions else None
        inputs = _inputs(func, args, kwargs) if known else []
        result = func(*args, **kwargs)  # in any case, since it may draw random numbers
        for place, (its, made) in enumerate(known or ()):
            if all(map(differ_by_rounding, inputs, its)):
                del known[place]  # type: ignore[union-attr]
                return _replaced(result, made)
        return result


@cache
def _name(function: Any) -> str:
    return getattr(getattr(function, "overloadpacket", None), "__name__", "")


def _writes(function: Any) -> bool:
    """Whether it is a choice that is written into what was chosen from."""
    return _name(function) in _IN_PLACE


def _inputs(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that go into a call, as they are before it."""
    return [tensor.clone() if _writes(function) else tensor for tensor in tensors_among((args, kwargs))]


def _key(function: Any, args: Any, kwargs: Any) -> _Key:
    """What two calls of the same choice have in common: the operator, the forms of tensors, and all other arguments."""
    return function, tuple(_forms((args, kwargs)))


def _forms(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Tensor):
        yield tuple(tree.shape), tree.dtype
    elif isinstance(tree, (list, tuple)):
        yield len(tree)
        for one in tree:
            yield from _forms(one)
    elif isinstance(tree, dict):
        for name, one in sorted(tree.items()):
            yield name
            yield from _forms(one)
    else:
        yield repr(tree)


def _copied(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return [_copied(one) for one in result]
    return result.clone() if isinstance(result, Tensor) else result


def _replaced(result: Any, made: Any) -> Any:
    """The results of the earlier choice; in the tensor that was written into, where one was."""
    if isinstance(result, Tensor):
        return result.copy_(made) if result.shape == made.shape else made
    if isinstance(result, (list, tuple)):
        return type(result)(_replaced(one, other) for one, other in zip(result, made, strict=True))
    return made
