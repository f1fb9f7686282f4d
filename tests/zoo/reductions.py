"""Reductions that leave out removed channels: those places at which two worlds differ, if some others are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Both = tuple[Any, Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Where two worlds hold different numbers; rounding is none."""
    if not a.is_floating_point() and not a.is_complex():
        return a != b
    same = (a == b) | (a.isnan() & b.isnan())
    return ~same & ~((a - b).abs() <= 1e-9 * (a.abs() + b.abs()))


def kept_places(a: Tensor, b: Tensor, dims: Sequence[int]) -> Tensor | None:
    """Which elements a reduction over ``dims`` takes: all (``None``), or in the rows where only some places differ
    between the worlds, the others.

    Where every place of a row differs, the row itself belongs to a removed channel.
    """
    found = differing(a, b)
    partial = found.any(dims, keepdim=True) & ~found.all(dims, keepdim=True)
    return ~(found & partial) if bool(partial.any()) else None


def kept_reduction(function: Any, one: Arguments, other: Arguments) -> Both | None:
    """A reduction's results in both worlds, over the kept places; ``None`` if it is none or takes all of them."""
    name = function.overloadpacket.__name__
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return _products(function, one, other)
    if name not in RULES:
        return None
    (x, facts), (y, other_facts) = (_named(function, *arguments) for arguments in (one, other))
    if not x.dim():
        return None
    dims_of, rule = RULES[name]
    if name == "native_group_norm":  # over the channels of a group and all places: the last dimension of this view
        facts["shape"] = other_facts["shape"] = x.shape
        x, y = (z.reshape(facts["N"], facts["group"], -1) for z in (x, y))
    dims = [dim % x.dim() for dim in dims_of(x, facts)]
    keep = kept_places(x, y, dims)
    if keep is None:
        return None
    return rule(_cast(x, facts), keep, dims, facts), rule(_cast(y, facts), keep, dims, other_facts)


def _named(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    names = [argument.name for argument in function._schema.arguments[1:]]
    return args[0], dict(zip(names, args[1:], strict=False)) | kwargs


named_arguments = _named


def _cast(x: Tensor, facts: dict[str, Any]) -> Tensor:
    return x.to(facts.get("dtype") or x.dtype)


def _products(function: Any, one: Arguments, other: Arguments) -> Both | None:
    """Of a product of two activations, as queries and keys are, a removed channel of both is left out."""
    a, b = one[0][-2:]
    c, d = other[0][-2:]
    changed = differing(a, c), differing(b, d)
    if not (bool(changed[0].any()) and bool(changed[1].any())):
        return None
    count = changed[0].double() @ changed[1].double()
    partial = (count > 0) & (count < a.shape[-1])
    if not bool(partial.any()):
        return None
    scale = one[1].get("alpha", 1)
    without = ((x * changed[0]) @ (y * changed[1]) * partial * scale for x, y in ((a, b), (c, d)))
    found = [function(*args, **kwargs) - less for (args, kwargs), less in zip((one, other), without, strict=True)]
    return found[0], found[1]


def _listed(x: Tensor, facts: dict[str, Any]) -> list[int]:
    dims = facts.get("dim")
    return list(range(x.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)


def _last(x: Tensor, facts: dict[str, Any]) -> list[int]:
    return list(range(x.dim() - len(facts["normalized_shape"]), x.dim()))


def _total(x: Tensor, keep: Tensor, dims: list[int]) -> Tensor:
    return torch.where(keep, x, torch.zeros_like(x)).sum(dims, keepdim=True)


def _moments(x: Tensor, keep: Tensor, dims: list[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Variance and mean; the reduced dimensions stay, of size 1."""
    count = keep.sum(dims, keepdim=True).to(x.dtype)
    mean = _total(x, keep, dims) / count
    return _total((x - mean) ** 2, keep, dims) / (count - correction), mean


def _shaped(value: Tensor, dims: list[int], facts: dict[str, Any]) -> Tensor:
    return value if facts.get("keepdim") else value.squeeze(dims)


def _sum(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> Tensor:
    return _shaped(_total(x, keep, dims), dims, facts)


def _mean(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> Tensor:
    return _shaped(_moments(x, keep, dims)[1], dims, facts)


def _spread(root: bool, mean: bool) -> Callable[..., Any]:
    def rule(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> Any:
        correction = facts.get("correction")
        variance, middle = _moments(x, keep, dims, 1 if correction is None else correction)
        spread = _shaped(variance.sqrt() if root else variance, dims, facts)
        return (spread, _shaped(middle, dims, facts)) if mean else spread

    return rule


def _norm(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> Tensor:
    order = facts.get("ord", facts.get("p", 2))
    order = 2.0 if order is None else float(order)
    size = torch.where(keep, x.abs(), torch.zeros_like(x.abs()))
    if order == math.inf:
        return _shaped(size.amax(dims, keepdim=True), dims, facts)
    assert order > 0, f"no rule for norms of order {order}"
    return _shaped((size**order).sum(dims, keepdim=True) ** (1 / order), dims, facts)


def _layer_norm(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = _moments(x, keep, dims)
    scale = (variance + facts["eps"]).rsqrt()
    return _affine((x - mean) * scale, facts.get("weight"), facts.get("bias")), mean, scale


def _rms_norm(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    eps = facts.get("eps")
    scale = (_moments(x**2, keep, dims)[1] + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return _affine(x * scale, facts.get("weight"), None), scale


def _group_norm(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = _moments(x, keep, dims)
    scale = (variance + facts["eps"]).rsqrt()
    found = ((x - mean) * scale).reshape(facts["shape"])
    weight, bias = (None if one is None else one.view(1, -1, *[1] * (found.dim() - 2)) for one in _affine_of(facts))
    return _affine(found, weight, bias), mean.squeeze(-1), scale.squeeze(-1)


def _batch_norm(x: Tensor, keep: Tensor, dims: list[int], facts: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = _moments(x, keep, dims)
    scale = (variance + facts["eps"]).rsqrt()
    shape = (1, -1, *[1] * (x.dim() - 2))
    weight, bias = (None if one is None else one.view(shape) for one in _affine_of(facts))
    return _affine((x - mean) * scale, weight, bias), mean.flatten(), scale.flatten()


def _affine_of(facts: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    return facts.get("weight"), facts.get("bias")


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


Rule = tuple[Callable[[Tensor, dict[str, Any]], list[int]], Callable[..., Any]]
RULES: dict[str, Rule] = {
    "sum": (_listed, _sum),
    "mean": (_listed, _mean),
    "var": (_listed, _spread(root=False, mean=False)),
    "std": (_listed, _spread(root=True, mean=False)),
    "var_mean": (_listed, _spread(root=False, mean=True)),
    "std_mean": (_listed, _spread(root=True, mean=True)),
    "linalg_vector_norm": (_listed, _norm),
    "norm": (_listed, _norm),
    "native_layer_norm": (_last, _layer_norm),
    "_fused_rms_norm": (_last, _rms_norm),
    "native_group_norm": (lambda x, facts: [-1], _group_norm),
}
MARKED_RULES: dict[str, Rule] = {
    **RULES,
    "native_batch_norm": (lambda x, facts: [dim for dim in range(x.dim()) if dim != 1], _batch_norm),
}
"""With those of a weight whose rows are normalised by the function of a BatchNorm."""
