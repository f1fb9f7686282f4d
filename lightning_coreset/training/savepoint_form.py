"""Whether plain data is a savepoint, checked when it is read: it may be needed epochs later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from torch import Tensor

from lightning_coreset.plain_data import as_type


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a savepoint for a checkpoint, with a digest of its form.

    What an optimizer keeps is its own affair, so that nothing else could tell whether that is still what was written.
    """
    return {**content, "digest": form_digest(content)}


def form_digest(content: Mapping[str, Any]) -> str:
    """A digest of keys, numbers, strings and the shapes of tensors; elements of tensors are not read.

    The precision of tensors and the difference of lists and tuples do not count: tools that copy checkpoints change
    them, and both can be put back.

    Example:
        >>> form_digest({"step": 1, "shape": (2, 3)}) == form_digest({"shape": [2, 3], "step": 1})
        True
        >>> form_digest({"step": 1}) == form_digest({"step": 2})
        False
    """
    form = "\n".join(map(repr, _form(content)))
    return blake2b(form.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _form(value: object) -> Iterator[object]:
    """What a value is made of, one thing after another, the same in whatever order dicts hold their items."""
    if isinstance(value, Tensor):
        yield Tensor, tuple(value.shape), value.is_floating_point(), value.is_complex(), value.is_meta
    elif isinstance(value, Mapping):
        yield dict, len(value)
        for key, item in sorted(value.items(), key=lambda pair: repr(pair[0])):
            yield key
            yield from _form(item)
    elif isinstance(value, list | tuple):
        yield list, len(value)
        for item in value:
            yield from _form(item)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield value
    else:  # whose text may hold an address
        yield type(value)


def checked_content(plain: Any) -> dict[str, Any]:
    """The content of a savepoint, as this version or 0.1 wrote it.

    Raises:
        ValueError: If it is something else, or has changed since it was written.
    """
    content = as_type(plain, dict[str, Any], "a savepoint")
    if "digest" in content:  # older ones have none
        digest = content.pop("digest")
        if digest != form_digest(content):
            raise ValueError("Expected a savepoint as it was written but got one with other parts.")
    shapes = _get(content, "shapes", dict[str, tuple[int, ...]])
    _get(content, "sizes", _SIZES)
    as_type(content.get("other_sizes", {}), _SIZES, "other_sizes")
    optimizers = _get(content, "optimizers", list[list[dict[Any, Any]]])
    others = as_type(content.get("other_optimizers", []), list[list[dict[Any, Any]]], "other_optimizers")
    as_type(content.get("held_tensors", []), list[list[Tensor]], "held_tensors")
    if len(as_type(content.get("kinds", optimizers), list[list[Any]], "the kinds of optimizers")) != len(optimizers):
        raise ValueError("Expected the kind of every optimizer in a savepoint but got another number of them.")
    for layers in (*optimizers, *others):
        for state in layers:
            as_type(list(state), list[int | str], "the keys of an optimizer's state")
    outside = as_type(content.get("outside", {}), dict[str, dict[str, Any]], "copies outside of the model")
    as_type(outside.get("shadows", {}), dict[str, Tensor], "shadow weights")
    for held in outside.get("modules", {}).values():
        saved = as_type(held, dict[str, Any], "a copy of the model")
        own = _get(saved, "shapes", dict[str, tuple[int, ...]])
        _get(saved, "sizes", _SIZES)
        _check_shapes(_get(saved, "tensors", dict[str, Tensor]), own)
    _get(content, "precision", dict[str, Any])
    if "models" in content:  # of version 0.1
        models = _get(content, "models", list[dict[str, Tensor]])
        _get(content, "averaged", list[int])
        _get(content, "patience", list[tuple[float, ...]])
        if not models:
            raise ValueError("Expected the model in a savepoint but got none.")
    else:
        models = [_get(content, "model", dict[str, Tensor])]
        models += _get(content, "averages", dict[str, dict[str, Tensor]]).values()
        _get(content, "averaged", dict[str, int])
        _get(content, "patience", dict[str, tuple[float, ...]])
        if len(_get(content, "parameters", list[dict[str, int]])) != len(optimizers):
            raise ValueError(
                "Expected the parameters of every optimizer in a savepoint but got another number of them."
            )
    pairs = [*(content["patience"].values() if isinstance(content["patience"], Mapping) else content["patience"])]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"Expected two values of every EarlyStopping in a savepoint but got {pairs}.")
    for model in models:
        _check_shapes(model, shapes)
    return content


_SIZES = dict[str, int | tuple[int, ...]]


def _check_shapes(model: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, tensor in model.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise ValueError(
                f"Expected {name!r} of a savepoint to have shape {shapes.get(name)} but got {tuple(tensor.shape)}."
            )


def _get(content: Mapping[str, Any], name: str, kind: Any) -> Any:
    if name not in content:
        raise ValueError(f"Expected {name} in a savepoint but got none.")
    return as_type(content[name], kind, name)
