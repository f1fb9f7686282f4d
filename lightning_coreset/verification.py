"""The self-check: on a copy, removing channels must do exactly what zeroing their consumers does.

Run before a group is pruned for the first time. It finds what no structure can know, such as a width written as a
number in the network's own code.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_coreset._compat import BatchOrInstanceNorm, own_parameters
from lightning_coreset.structure import ChannelGroup, Example, Structure, plain_execution, preserved_random, tensors_in
from lightning_coreset.surgery import apply_changes, named_tensors, scale_counts, slice_members

_SHARE = 0.3
"""Classes of every group that the check removes."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference relative to the largest output; a wrong index moves outputs by about their own size."""


def verified(model: nn.Module, structure: Structure, example: Example) -> Structure:
    """The structure without the groups that fail the self-check, with a warning that names them."""
    failures = failing_groups(model, structure.groups, example)
    if failures:
        warnings.warn(describe_failures(failures), stacklevel=4)  # to whoever called `prune`
    return structure.without(failures)


def describe_failures(failures: Mapping[str, str]) -> str:
    """A warning that names the groups that failed, each with the reason."""
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
    return f"The channels of these layers are not pruned, since a trial on a copy failed:\n{reasons}"


def failing_groups(model: nn.Module, groups: Sequence[ChannelGroup], example: Example) -> dict[str, str]:
    """Try the removal of channels on copies of a model.

    All groups are tried at once, and halves of them where that fails, down to the single ones to blame.

    Args:
        model: The network; it stays as it is.
        groups: What ``find_groups`` found in it.
        example: How to run it. It is run on these inputs and on others of the same shapes.

    Returns:
        The names of the groups that fail, each with the reason in words. Where a copy of the model cannot be made or
        run, as when it does not fit into memory, nothing is tried: a warning says so.
    """
    if not groups:
        return {}
    with torch.inference_mode(False):
        try:
            trial = _Trial(model, example)
            failures = trial.blame(groups)
            sound = [group for group in groups if group.name not in failures]
            return failures | trial.without_effect(sound)
        # No memory for a copy, a module that cannot be copied, a run that needs the original.
        except Exception as error:
            message = f"A copy of the model cannot be run ({type(error).__name__}: {_short(error)})"
            warnings.warn(f"{message}, so channels are pruned without a trial.", stacklevel=3)
            return {}


class _Trial:
    """Tries groups on fresh copies of one model with randomised parameters."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model = _copy(model)
        generator = torch.Generator().manual_seed(0)
        _randomise(self.model, generator)
        self.dtype, self.examples = torch.float64, []
        # Code that makes single-precision tensors itself cannot run in double; a step that checks its inputs may refuse
        # random ones.
        attempts = [
            (dtype, examples)
            for dtype in (torch.float64, torch.float32)
            for examples in ([example, example.other(generator)], [example])
        ]
        for number, (dtype, examples) in enumerate(attempts, 1):
            try:
                self.dtype, self.examples = dtype, [one.to(dtype) for one in examples]
                self._run(self.model.to(dtype))
                return
            except Exception:
                if number == len(attempts):
                    raise

    def _run(self, model: nn.Module, *, gradients: bool = False) -> list[Tensor]:
        """All floating outputs of both examples, under one seed."""
        outputs = []
        for example in self.examples:
            with preserved_random(model), plain_execution(), torch.set_grad_enabled(gradients):
                _seed(model)
                found = example.run(model, example.inputs)
            outputs += [tensor for tensor in tensors_in(found) if tensor.is_floating_point()]
        return outputs

    def blame(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The groups that fail, found by halving; all of them where they fail only together."""
        reason = self.attempt(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        middle = len(groups) // 2
        found = self.blame(groups[:middle]) | self.blame(groups[middle:])
        return found or {group.name: f"together with others, {reason}" for group in groups}

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Zero the consumers, disturb the producers, then remove: the outputs must stay the same throughout."""
        model = _copy(self.model)
        removed = {group.name: _some(group) for group in groups}
        _fill(model, groups, removed, "consumer", 0.0)
        expected = self._run(model)
        _fill(model, groups, removed, "producer", 1.0)
        leak = self._difference(self._run(model), expected)
        if leak is not None:
            return f"its channels reach further than its consumers ({leak})"
        kept = [(group, sorted(set(range(group.size)) - removed[group.name])) for group in groups]
        try:
            apply_changes(model, slice_members(named_tensors(model), kept), scale_counts(model, kept))
            found = self._run(model)
        except Exception as error:
            return (
                f"without some of its channels the network does not run ({type(error).__name__}: {_short(error)}); a "
                "width may be written as a number in its code"
            )
        difference = self._difference(found, expected)
        return None if difference is None else f"its removal changes what the network computes ({difference})"

    def _difference(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            return "outputs of another shape"
        for one, other in zip(found, expected, strict=True):
            finite = other.isfinite()
            if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isnan(), other.isnan()):
                return "other outputs are not finite"
            if finite.any():
                one, other = one[finite], other[finite]
                error = float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
                if error > _TOLERANCE[self.dtype]:
                    return f"relative error {error:.1e}"
        return None

    def without_effect(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Groups whose consumers have no influence on any output, so that the trial proved nothing."""
        moving = self._moving(groups)
        idle = [group for group in groups if not any(one.name in moving for one in group.by_role("consumer"))]
        expected = self._run(self.model) if idle else []
        silent = []
        for group in idle:  # no gradient: it may have been switched off, or really be zero
            model = _copy(self.model)
            _fill(model, [group], {group.name: _some(group)}, "consumer", 0.0)
            if self._difference(self._run(model), expected) is None:
                silent.append(group.name)
        reason = "its removal cannot be tried, since it has no influence on the outputs of the example inputs"
        return dict.fromkeys(silent, reason)

    def _moving(self, groups: Sequence[ChannelGroup]) -> set[str]:
        """The consumers that some output depends on, by its gradient."""
        consumers = {member.name for group in groups for member in group.by_role("consumer")}
        parameters = {
            name: tensor.requires_grad_(True)
            for name, tensor in named_tensors(self.model).items()
            if name in consumers and tensor.is_floating_point()
        }
        outputs = [tensor for tensor in self._run(self.model, gradients=True) if tensor.requires_grad]
        if not outputs or not parameters:
            return set()
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            mixed = [(output * _noise(output, generator)).nansum().cpu() for output in outputs]
            gradients = torch.autograd.grad(torch.stack(mixed).sum(), list(parameters.values()), allow_unused=True)
        return {name for name, grad in zip(parameters, gradients, strict=True) if grad is not None and grad.any()}


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; a LightningModule's copy keeps its Trainer, which ``training_step`` may ask for the epoch."""
    # Computed weights that modules keep as attributes (weight_norm of old, prune masks) cannot be copied as they are.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    duplicate = copy.deepcopy(model, computed)
    if "_trainer" in vars(model):
        vars(duplicate)["_trainer"] = vars(model)["_trainer"]
    return duplicate.eval()


def _seed(model: nn.Module) -> None:
    """One seed for all random numbers that the run may draw; only those that ``preserved`` restores."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in {parameter.device for parameter in model.parameters() if parameter.is_cuda}:
        torch.cuda.default_generators[device.index].manual_seed(0)


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)


def _some(group: ChannelGroup) -> set[int]:
    """About a third of the classes, at least one; at least one stays."""
    count = min(max(1, round(_SHARE * group.size)), group.size - 1)
    return set(random.Random(0).sample(range(group.size), count))


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Statistics and parameters that stand at one value, such as fresh biases, would hide a wrong index."""
    for module in model.modules():
        for tensor in own_parameters(module).values():
            if tensor.is_floating_point() and (tensor.dim() < 2 or _is_constant(tensor)):
                tensor.add_(0.1 * _noise(tensor, generator))
        if isinstance(module, BatchOrInstanceNorm) and module.running_mean is not None:
            module.running_mean.add_(0.1 * _noise(module.running_mean, generator))
            module.running_var.mul_((0.3 * _noise(module.running_var, generator)).exp())  # type: ignore[union-attr]


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.reshape(-1)[0]).all())


@torch.no_grad()
def _fill(
    model: nn.Module, groups: Iterable[ChannelGroup], removed: Mapping[str, set[int]], role: str, value: float
) -> None:
    """Overwrite what belongs to the removed classes in all members of one role."""
    tensors = named_tensors(model)
    for group in groups:
        for member in group.members:
            if member.role == role:
                places = [place for number in removed[group.name] for place in member.index[number]]
                tensor = tensors[member.name]
                tensor.index_fill_(member.dim, torch.tensor(places, dtype=torch.int64, device=tensor.device), value)


def _short(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
