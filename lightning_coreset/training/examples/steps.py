"""Run steps of a LightningModule as Lightning does, and see what they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_coreset.structure import StepOutputs, output_tensors
from lightning_coreset.training.examples.batches import fresh
from lightning_coreset.training.examples.moment import Moment

Calls: TypeAlias = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
"""Names of submodules, each with arguments and keyword arguments."""


@dataclass(eq=False)
class StepRun:
    """Runs a step on a batch as it ran, or would run, in training.

    What it returns and logs counts as the network's output, and so does all that the module's own ``forward`` returns
    within it.

    Attributes:
        hook: The name of the step.
        batch_idx: The index of the batch.
        dataloader_idx: That of the loader, where there are several.
        moment: When it ran; ``None`` if it does not matter.
        calls_forward: Whether it was seen to call the module's own ``forward``.
    """

    hook: str
    batch_idx: int = 0
    dataloader_idx: int | None = None
    moment: Moment | None = None
    calls_forward: bool = field(default=False, init=False)

    def __call__(self, module: nn.Module, batch: Any) -> StepOutputs | list[Tensor]:
        """Run it on a copy of the batch."""
        with (
            self.moment.again(module) if self.moment is not None else nullcontext(),
            _returned(module, "forward") as returned,
            _logged(module) as logged,
        ):
            result = run_step(module, self.hook, fresh(batch), self.batch_idx, self.dataloader_idx)
        self.calls_forward |= bool(returned)
        features = [tensor for part in returned for tensor in output_tensors(part)]
        numbers = [tensor for part in (result, logged) for tensor in output_tensors(part)]
        return [*numbers, *features] if self.hook == "predict_step" else StepOutputs(numbers, features)


def run_step(module: nn.Module, hook: str, batch: Any, batch_idx: int = 0, dataloader_idx: int | None = None) -> Any:
    """Call a step with the arguments that it takes."""
    step: Callable[..., Any] = getattr(module, hook)
    # Whatever its name is: a step with two arguments takes the index of the batch.
    index = (batch_idx,) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else ()
    return step(batch, *index, *(() if dataloader_idx is None else (dataloader_idx,)))


def can_be_repeated(pl_module: pl.LightningModule) -> bool:
    """Whether a training step can be run once more: not if it steps optimizers, or fetches its batches itself."""
    fetches = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
    return pl_module.automatic_optimization and not fetches


def training_step(module: nn.Module, batch: Any) -> Any:
    """Run the module's own training step on a batch."""
    return run_step(module, "training_step", batch)


def recorded_calls(module: nn.Module, calls: Calls) -> list[Any]:
    """Call submodules of a network as in the recorded step: names, arguments and keyword arguments."""
    return [module.get_submodule(name)(*args, **kwargs) for name, args, kwargs in fresh(calls)]


@contextmanager
def _returned(module: nn.Module, method: str) -> Iterator[list[Any]]:
    """What a method of a module returns in the block, whether it is called as ``self(x)`` or by its name."""
    returned: list[Any] = []
    original = getattr(module, method)

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        returned.append(result)
        return result

    with _replaced(module, {method: noted}):
        yield returned


@contextmanager
def _logged(module: nn.Module) -> Iterator[list[Any]]:
    """The values that a module logs in the block: often all that a validation step makes."""
    logged: list[Any] = []

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Tensor):
            logged.append(value)

    def log_dict(dictionary: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            log(name, value)

    with _replaced(module, {"log": log, "log_dict": log_dict}):
        yield logged


@contextmanager
def _replaced(module: nn.Module, attributes: dict[str, Any]) -> Iterator[None]:
    before = {name: vars(module)[name] for name in attributes if name in vars(module)}
    vars(module).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            vars(module).pop(name, None)
        vars(module).update(before)
