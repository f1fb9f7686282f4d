"""Copies of a network with randomised weights, and the distance between the outputs of two."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from weight_norms import duplicate

from .entry import Inputs
from .inspection import tensors


@torch.no_grad()
def randomise(model: nn.Module, inputs: Inputs, generator: Generator) -> None:
    """Makes every weight matter: nothing stays constant, zero, or so small that a mistake would not show."""
    randomise_weights(model, generator)
    # With statistics of pure chance the signal dies out in deep networks; so they are those of a batch, with noise.
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    norms = [module for module in norms if module.running_var is not None]
    momenta, training = [module.momentum for module in norms], model.training
    for module in norms:
        module.momentum = 1.0
    with contextlib.suppress(ValueError):  # one value per channel has no variance
        call(model.train(), inputs)
    model.train(training)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        noise = torch.randn(2, module.num_features, generator=generator).to(module.running_var.dtype)
        module.running_var.clamp_(min=1e-3).mul_(0.5 + noise[0].abs())
        module.running_mean.add_(0.3 * noise[1] * module.running_var.sqrt())


def randomise_weights(model: nn.Module, generator: Generator) -> None:
    """Noise on parameters, and on the buffers of norms."""
    for name, tensor in tensors(model).items():
        if not tensor.is_floating_point() or "parametrizations" in name or tensor.numel() == 0:
            continue
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        constant = bool((tensor == tensor.flatten()[0]).all())
        if not isinstance(tensor, nn.Parameter):
            # Statistics, and the affine buffers of frozen BatchNorms; other buffers have a meaning of their own.
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith(("running_mean", "weight", "bias")) and tensor.dim() == 1:
                tensor.add_(noise, alpha=0.3)
        elif tensor.dim() <= 1 or constant:
            tensor.add_(noise, alpha=0.3)
        else:
            spread = math.sqrt(2 / tensor[0].numel())
            if tensor.std() < spread:
                tensor.mul_(spread / tensor.std())
            tensor.add_(noise, alpha=0.1 * float(tensor.std()))


def evaluate(model: nn.Module, inputs: Inputs, train: bool = False) -> list[Tensor]:
    """The outputs in double precision, on a copy, so that no statistics are kept."""
    model = duplicate(model).double().train(train)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), GroupedInDouble(), AllDouble():
        torch.manual_seed(0)
        return results(call(model, as_double(inputs)))


class AllDouble(TorchDispatchMode):
    """Double precision also where the code asks for single, as many norms and softmaxes of transformers do."""

    WIDER: ClassVar = {
        torch.float16: torch.float64,
        torch.bfloat16: torch.float64,
        torch.float32: torch.float64,
        torch.complex64: torch.complex128,
    }

    def __enter__(self) -> AllDouble:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(self.default)
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in self.WIDER:
            kwargs["dtype"] = self.WIDER[kwargs["dtype"]]
        found = function(*args, **kwargs)
        is_new = function.overloadpacket is torch.ops.aten.lift_fresh  # made of Python's numbers
        return found.to(self.WIDER[found.dtype]) if is_new and found.dtype in self.WIDER else found


class GroupedInDouble(TorchDispatchMode):
    """Grouped products in double precision, which torch does not have: one matrix after the other."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ != "_grouped_mm" or args[0].dtype != torch.float64:
            return function(*args, **(kwargs or {}))
        rows, matrices, *rest = args
        ends = (rest[0] if rest else kwargs["offs"]).tolist()
        starts = [0, *ends[:-1]]
        return torch.cat([rows[a:b] @ one for a, b, one in zip(starts, ends, matrices, strict=True)])


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Calls the network on positional inputs or on keywords; fresh copies, as some write into them."""
    inputs = copy.deepcopy(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def as_double(value: Any) -> Any:
    """The same nested containers with floating-point tensors in double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: as_double(one) for key, one in value.items()}
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: as_double(getattr(value, name)) for name in fields})
    return type(value)(map(as_double, value)) if isinstance(value, tuple | list) else value


def results(value: Any) -> list[Tensor]:
    """The tensors for which a network is run: beside logits or a loss, not what transformers made on the way."""
    if isinstance(value, Mapping) and any("logits" in name or "loss" in name for name in value):
        ends = ("hidden_state", "hidden_states", "attentions", "past_key_values")
        value = [one for name, one in value.items() if not name.endswith(ends) and not isinstance(one, Mapping)]
    return flat(value)


def flat(value: Any) -> list[Tensor]:
    """All tensors of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [one for part in value for one in flat(part)] if isinstance(value, tuple | list) else []


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The greatest relative difference of two lists of outputs; infinite if shapes, kinds or finiteness differ."""
    assert expected, "the network returns no tensor"
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else math.inf)
            continue
        assert not b.isnan().any(), "the expected output has NaNs: nothing can be compared"
        finite = b.isfinite()
        if not torch.equal(a[~finite], b[~finite]):
            return math.inf
        a, b = a[finite].double(), b[finite].double()
        if b.numel():
            gap, size = (a - b).abs().max().item(), b.abs().max().item()
            worst = max(worst, 0.0 if gap == 0 else gap / max(size, 1e-12), math.inf if math.isnan(gap) else 0.0)
    return worst
