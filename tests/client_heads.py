"""Are networks that end in distributions of other projects pruned right? Compared with weights that are zero."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from zoo.running import as_double, flat

from lightning_coreset import prune
from lightning_coreset.structure import analyse

EXACT = 1e-10
"""Relative, in double precision."""


class SeenError(Exception):
    """The first call has been seen: there is nothing to train."""


def first_call(fit: Callable[[], Any]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The first LightningModule, of either package, that is called in training, and its positional arguments."""

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        if hasattr(module, "training_step") and args:
            raise SeenError(module, args)

    handle = nn.modules.module.register_module_forward_pre_hook(see)
    try:
        fit()
    except SeenError as seen:
        return seen.args[0], seen.args[1]
    finally:
        handle.remove()
    raise AssertionError("training calls no LightningModule")


@contextmanager
def all_double() -> Iterator[None]:
    """Double precision also of what the networks make themselves."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@all_double()
def check_heads(model: nn.Module, inputs: tuple[Any, ...], heads: str, never_run: Sequence[str] = ()) -> None:
    """Channels in front of the heads go, what heads make stays, and the result is that of zeros.

    Args:
        model: A network whose outputs, or losses, are made of the parameters of distributions.
        inputs: What it runs on.
        heads: The pattern of the names of the layers that make these parameters.
        never_run: What a call of the model does not run, such as a loss with layers of its own that reads its outputs.
    """
    model, inputs = copy.deepcopy(model).double().eval(), as_double(inputs)
    model.requires_grad_(True)
    read = {
        (member.name, member.dim)
        for group in analyse(model, inputs).groups
        for member in group.members
        if member.role == "consumer"
    }
    pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    plan = prune(pruned, inputs, 0.3, method="random", never_run=never_run, verbose=False)

    layers, narrow = dict(model.named_modules()), dict(pruned.named_modules())
    ends = fnmatch.filter(layers, heads)
    for head in ends:
        before, after = layers[head].weight, narrow[head].weight
        assert after.shape[0] == before.shape[0], f"{head} makes {after.shape[0]} of {before.shape[0]} parameters"
    assert any(narrow[head].weight.shape[1] < layers[head].weight.shape[1] for head in ends), plan.skipped

    tensors = dict(zeroed.named_parameters())
    for change in plan.changes:  # not by groups: layers of an LSTM that do not share units lose units of their own
        for dim, kept in change.kept.items():
            if (change.name, dim) in read:
                gone = torch.tensor(sorted({*range(change.old_shape[dim])} - {*kept.tolist()}))
                tensors[change.name].data.index_fill_(dim, gone, 0)
    found, expected, whole = (outputs(network, inputs) for network in (pruned, zeroed, model))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
    assert not all(map(torch.equal, expected, whole)), "zeros change nothing, so nothing was tested"


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What it makes, with the same random numbers always."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return flat(model(*copy.deepcopy(inputs)))
