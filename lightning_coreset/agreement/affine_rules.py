"""Operators that are affine in the data: what they compute with all else constant, and their magnitude.

A rule gets the arguments of a call by name, with :class:`Data` in the places of what depends on the input, and returns
the two functions of ``tape.Affine``; ``None`` where the call is not affine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.agreement.tape import Function
from lightning_coreset.structure import OpCall


@dataclass(frozen=True)
class Data:
    """Stands in the place of the n-th value that depends on the input."""

    place: int


Arguments = Mapping[str, Any]
Rule = Callable[[OpCall, Arguments], tuple[Function, Function] | None]


def affine_functions(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    """The function of a call and its magnitude; of several results a tuple. ``None`` if it is not known to be affine.

    Args:
        call: The call.
        arguments: Its arguments, with ``Data`` for what depends on the input.
    """
    rule = _RULES.get(call.name)
    return None if rule is None else rule(call, arguments)


def _filled(value: Any, data: tuple[Tensor, ...]) -> Any:
    if isinstance(value, Data):
        return data[value.place]
    if isinstance(value, (list, tuple)):
        return [_filled(one, data) for one in value]
    return value


def _calling(function: Callable[..., Any], arguments: Arguments) -> Callable[..., Any]:
    def run(*data: Tensor) -> Any:
        return function(**{name: _filled(value, data) for name, value in arguments.items()})

    return run


def _is_data(value: Any) -> bool:
    return isinstance(value, Data)


def holds_data(value: Any) -> bool:
    """Whether a value is ``Data`` or holds some."""
    return any(map(holds_data, value)) if isinstance(value, (list, tuple)) else _is_data(value)


def _absolute(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.dtype == torch.bool else value.abs()
    return abs(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _moves(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    """What adds up numbers with weights that are not negative, moves them, or leaves them as they are."""
    (name, first), *others = arguments.items()
    if call.inplace or any(holds_data(value) for _, value in others):
        return None
    if isinstance(dtype := arguments.get("dtype"), torch.dtype) and not dtype.is_floating_point:
        return None
    changed = {"dtype": None} if "dtype" in arguments else {}  # numbers are real: no cast makes others of them
    magnitudes = {name: _absolute(value) if name in _SIGNED else value for name, value in others}
    magnitudes[name] = [_absolute(one) for one in first] if isinstance(first, (list, tuple)) else first
    run = _reshaped if call.name in _VIEWS else _by_keywords(call)
    return _calling(run, {**arguments, **changed}), _calling(run, {**magnitudes, **changed})


def _reshaped(self: Tensor, size: Any, **_: Any) -> Tensor:
    """A view by the order of numbers, whatever their places in memory."""
    return self.reshape(tuple(size))


def _keeps(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    """The same numbers in other memory, or cast to another type of real numbers."""
    dtype = arguments.get("dtype")
    return (_same, _same) if dtype is None or dtype.is_floating_point else None


def _same(x: Tensor) -> Tensor:
    return x


def _by_keywords(call: OpCall) -> Callable[..., Any]:
    """The operator as a function of named arguments; the positional ones of its schema do not all take keywords."""
    names = list(call.signature.defaults)

    def run(**given: Any) -> Any:
        keywords = {name: given[name] for name in names if name in call.kwargs}
        count = len(call.args)
        return call.function(*(given[name] for name in names[:count]), **keywords)

    return run


def _adds(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    first, other, alpha = arguments["self"], arguments["other"], arguments.get("alpha", 1)
    if call.name == "rsub":
        first, other = other, first
    sign = 1 if call.name == "add" else -1

    def added(a: Any, b: Any, factor: float) -> Any:
        return a + factor * b

    magnitudes = {"a": _absolute(first), "b": _absolute(other), "factor": abs(alpha)}
    return _calling(added, {"a": first, "b": other, "factor": sign * alpha}), _calling(added, magnitudes)


def _multiplies(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    first, other = arguments["self"], arguments["other"]
    if arguments.get("rounding_mode") is not None or (_is_data(other) and (call.name == "div" or _is_data(first))):
        return None
    values = {"a": first, "b": other}
    run = operator.truediv if call.name == "div" else operator.mul
    magnitudes = {name: _absolute(value) for name, value in values.items()}
    return _positional(run, values), _positional(run, magnitudes)


def _positional(run: Callable[[Any, Any], Any], values: Arguments) -> Function:
    return _calling(lambda a, b: run(a, b), values)


def _negates(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    return torch.neg, torch.clone


def _matrix_product(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    """One factor is data; what is added may be as well."""
    added = ("self", "input") if call.name in ("addmm", "addmv", "baddbmm") else ()
    if call.inplace or sum(_is_data(value) for name, value in arguments.items() if name not in added) > 1:
        return None
    run = _by_keywords(call)
    magnitudes = {name: _absolute(value) for name, value in arguments.items()}
    return _calling(run, arguments), _calling(run, magnitudes)


def _convolution(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    if any(_is_data(arguments[name]) for name in ("weight", "bias")):
        return None
    magnitudes = {**arguments, "weight": arguments["weight"].abs(), "bias": _absolute(arguments["bias"])}
    run = _by_keywords(call)
    return _calling(run, arguments), _calling(run, magnitudes)


def _batch_norm(call: OpCall, arguments: Arguments) -> tuple[Function, Function] | None:
    """In evaluation: every channel times a number plus another one."""
    mean, variance = arguments["running_mean"], arguments["running_var"]
    training = arguments.get("training", False) or arguments.get("train", False)
    if training or mean is None or variance is None or any(map(_is_data, list(arguments.values())[1:])):
        return None
    scale = (variance + arguments.get("eps", arguments.get("epsilon"))).rsqrt()
    scale = scale if arguments["weight"] is None else scale * arguments["weight"]
    shift = -mean * scale
    shift = shift if arguments["bias"] is None else shift + arguments["bias"]
    dims = call.args[0].dim() - 2
    scale, shift = scale.view(-1, *[1] * dims), shift.view(-1, *[1] * dims)
    return (lambda x: x * scale + shift), (lambda x: x * scale.abs() + shift.abs())


_SIGNED = ("value", "divisor_override")
"""Arguments of ``_moves`` whose sign is one of the result."""

_VIEWS = ("view", "_unsafe_view", "_reshape_alias", "reshape")

_MOVING = """
view _unsafe_view reshape permute t transpose unsqueeze squeeze select slice narrow split split_with_sizes chunk unbind
expand repeat roll flip index index_select cat stack mean sum cumsum avg_pool1d avg_pool2d
avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d
upsample_trilinear3d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d constant_pad_nd pixel_shuffle
pixel_unshuffle channel_shuffle im2col diagonal _reshape_alias
""".split()

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVING, _moves),
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh", "_to_copy"), _keeps),
    **dict.fromkeys(("add", "sub", "rsub"), _adds),
    **dict.fromkeys(("mul", "div"), _multiplies),
    "neg": _negates,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"), _matrix_product),
    "convolution": _convolution,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm"),
        _batch_norm,
    ),
}
"""Names as in ``OpCall``."""
