"""How a model was pruned as a tensor among its others, for formats that hold nothing but tensors."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata, unreadable
from lightning_coreset.qualified_names import common_module

_NEARLY = 0.1  # what averages of equal numbers may be off


def record_entry(model: nn.Module) -> tuple[str, Tensor] | None:
    """The name and the tensor that say how a model was pruned; ``None`` if it is not pruned.

    The name is that of the smallest submodule that contains all that pruning changed, so that the record goes along
    when the tensors of a part are taken out, as by ``name.removeprefix("net.")``.
    """
    metadata = PruningMetadata.of(model)
    if metadata is None:
        return None
    changed = metadata.pruned
    path = common_module(name.rpartition(".")[0] for name in (*changed.shapes, *changed.sizes))
    while path and not _has_module(model, path):  # the owner of a size may be a config object
        path = path.rpartition(".")[0]
    inner = PruningMetadata(metadata.original.within(path), changed.within(path))
    return f"{path}.{KEY}" if path else KEY, _to_tensor(inner)


def pop_records(state_dict: MutableMapping[str, Any], prefix: str = "") -> PruningMetadata | None:
    """Take all records out of the entries of a state dict, and put them together; ``None`` if there is none.

    Args:
        state_dict: The entries; changed in place.
        prefix: That of the model's names.

    Raises:
        ValueError: If one cannot be read, or two contradict each other.
    """
    found: PruningMetadata | None = None
    for name in [name for name in state_dict if is_record(name) and name.startswith(prefix)]:
        path = name[len(prefix) :].removesuffix(KEY).removesuffix(".")
        inner = _read(state_dict.pop(name)).with_prefix(path)
        found = inner if found is None else combined(found, inner)
    return found


def is_record(name: str) -> bool:
    """Whether this is the name of such an entry."""
    return name.rpartition(".")[2] == KEY


def combined(one: PruningMetadata, other: PruningMetadata) -> PruningMetadata:
    """What both say.

    Raises:
        ValueError: If they contradict each other.
    """
    for ours, theirs in ((one.original, other.original), (one.pruned, other.pruned)):
        for own, others in ((ours.shapes, theirs.shapes), (ours.sizes, theirs.sizes)):
            wrong = [name for name in own if others.get(name, own[name]) != own[name]]
            if wrong:
                raise ValueError(
                    f"Expected one record of how the model was pruned but got two: of {wrong[0]!r} one says "
                    f"{own[wrong[0]]}, the other one {others[wrong[0]]}. The state dict was put together of two models."
                )
    return PruningMetadata(one.original | other.original, one.pruned | other.pruned)


def to_plain(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON can hold it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain: dict[str, Any] = {"dtype": dtype, "shape": list(tensor.shape)}
    if tensor.is_meta:
        return plain
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {**plain, "base64": base64.b64encode(content).decode("ascii")}


def from_plain(plain: Mapping[str, Any]) -> Tensor:
    """The inverse of :func:`to_plain`.

    Raises:
        Exception: If it is something else.
    """
    dtype = getattr(torch, plain["dtype"])
    if "base64" not in plain:
        return torch.empty(plain["shape"], dtype=dtype, device="meta")
    content = bytearray(base64.b64decode(plain["base64"], validate=True))
    return torch.frombuffer(content, dtype=dtype).reshape(plain["shape"]).clone()


def _to_tensor(metadata: PruningMetadata) -> Tensor:
    plain = metadata.to_dict()
    for part in plain.values():
        part["constants"] = {name: to_plain(value) for name, value in part["constants"].items()}
    return torch.frombuffer(bytearray(json.dumps(plain).encode("ascii")), dtype=torch.uint8)


def _read(value: Any) -> PruningMetadata:
    if not isinstance(value, Tensor):  # version 0.1 wrote dicts
        return PruningMetadata.from_dict(value)
    try:
        plain = json.loads(_characters(value).decode("ascii"))
        for part in plain.values():
            part["constants"] = {name: from_plain(each) for name, each in part["constants"].items()}
    except Exception as error:  # of a damaged text, anything
        raise unreadable(error) from error
    return PruningMetadata.from_dict(plain)


def _characters(tensor: Tensor) -> bytes:
    """The bytes of a record, also of one that was converted to another type or averaged along with the weights."""
    exact = tensor.detach().cpu().double()
    numbers = exact.round()
    if bool((numbers - exact).abs().gt(_NEARLY).any()):
        raise ValueError("Expected a record of integers but got other numbers.")
    return bytes(numbers.int().tolist())


def _has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
