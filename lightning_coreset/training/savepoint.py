"""A state of training to go back to, even after training has gone on and the run was resumed in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_coreset._compat import averaged_model, set_lbfgs_numel
from lightning_coreset.optimizers import innermost_first
from lightning_coreset.surgery import ModelShapes, named_tensors, resize
from lightning_coreset.training.averaged_models import averaged_copies
from lightning_coreset.training.metrics.recorder import map_tensors
from lightning_coreset.training.strategies import run_on_all_ranks, unwrapped


class Savepoint:
    """What a pruning event and the training after it change, copied to the CPU, to go back to exactly.

    Of the model and of the copies that EMA and SWA keep: all parameters and buffers, and the sizes that modules
    remember. Of the optimizers: the state of every parameter. Also the scale of mixed precision and the patience of
    EarlyStopping. Objects stay what they are: parameters, optimizers, their groups.

    Time is not turned back: learning rates and whatever else schedulers set, epochs, steps and random numbers go on.

    Args:
        content: Plain data, as of :meth:`to_dict`.

    Example:
        >>> from lightning_coreset.surgery import replace_data
        >>> model = pl.LightningModule()
        >>> model.layer = nn.Linear(2, 3, bias=False)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.strategy.connect(model)
        >>> before = Savepoint.take(trainer, model)
        >>> replace_data(model.layer.weight, torch.zeros(1, 2))
        >>> before.restore(trainer, model)
        >>> model.layer.weight.shape
        torch.Size([3, 2])
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    @classmethod
    def take(cls, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Savepoint:
        """Copy everything as it is now."""
        layout = ModelShapes.of(pl_module)
        return cls(
            {
                "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
                "sizes": dict(layout.sizes),
                "models": [_copied(named_tensors(model)) for model in (pl_module, *averaged_copies(trainer))],
                "averaged": [0 if counter is None else int(counter) for counter in _counters(trainer)],
                "optimizers": [
                    [_state(layer) for layer in innermost_first(optimizer)] for optimizer in trainer.optimizers
                ],
                "precision": trainer.precision_plugin.state_dict(),
                "patience": [(callback.wait_count, float(callback.best_score)) for callback in _stoppers(trainer)],
            }
        )

    def after(self, pl_module: pl.LightningModule) -> Savepoint:
        """The same without the sizes that an event did not change: they may count anything, and training goes on."""
        sizes = ModelShapes(sizes=self._content["sizes"]).difference(ModelShapes.of(pl_module)).sizes
        return Savepoint({**self._content, "sizes": dict(sizes)})

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put everything back; gradients are gone then. A collective operation."""
        with unwrapped(trainer):
            run_on_all_ranks(trainer, lambda: self._restore(trainer, pl_module))

    @torch.no_grad()
    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        content = self._content
        shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
        models = (pl_module, *averaged_copies(trainer))
        for model in models:
            resize(model, ModelShapes(shapes, content["sizes"]))
        for model, tensors in zip(models, content["models"], strict=True):
            _put_tensors(model, tensors)
        for counter, number in zip(_counters(trainer), content["averaged"], strict=True):
            if counter is not None:
                counter.fill_(number)
        for optimizer, states in zip(trainer.optimizers, content["optimizers"], strict=True):
            for layer, state in zip(innermost_first(optimizer), states, strict=True):
                _put_state(layer, state)
        if content["precision"]:
            trainer.precision_plugin.load_state_dict(content["precision"])
        for callback, (waited, best) in zip(_stoppers(trainer), content["patience"], strict=True):
            callback.wait_count, callback.best_score = waited, callback.best_score.new_tensor(best)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors."""
        return dict(self._content)


def _counters(trainer: pl.Trainer) -> list[Tensor | None]:
    """How many models each average is made of; ``None`` for SWA before it starts."""
    counters: list[Tensor | None] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = averaged_model(callback)
        if average is not None:
            counters.append(getattr(average if isinstance(average, AveragedModel) else callback, "n_averaged", None))
    return counters


def _stoppers(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]


def _copied(tree: Any) -> Any:
    return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), tree)


def _put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        tensor.grad = None
        if name in tensors:
            tensor.data.copy_(tensors[name])


def _state(layer: Any) -> dict[int | str, Any]:
    """The state of an optimizer by the position of its parameters."""
    positions = {id(parameter): position for position, (parameter, _) in enumerate(_parameters(layer))}
    places = [(positions.get(id(key), key), value) for key, value in layer.state.items()]
    return {place: _copied(value) for place, value in places if isinstance(place, int | str)}


def _put_state(layer: Any, state: Mapping[int | str, Any]) -> None:
    # Parameters that came later, as a finetuning callback adds them, came after these and had no state.
    parameters = dict(enumerate(_parameters(layer)))
    layer.state.clear()
    for key, value in state.items():
        parameter, group = parameters[key] if isinstance(key, int) else (key, {})
        layer.state[parameter] = _placed(value, parameter, group) if isinstance(parameter, Tensor) else value
    if isinstance(layer, torch.optim.LBFGS):
        set_lbfgs_numel(layer, None)


def _parameters(layer: Any) -> list[tuple[Tensor, Mapping[str, Any]]]:
    return [(parameter, group) for group in layer.param_groups for parameter in group["params"]]


def _placed(state: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """A copy of a parameter's state on its device, but for the counter of steps, as torch loads it."""
    on_cpu = not (group.get("capturable") or group.get("fused"))
    placed = map_tensors(lambda tensor: tensor.to(parameter.device, copy=True), state)
    if on_cpu and isinstance(state, dict) and isinstance(state.get("step"), Tensor):
        placed["step"] = state["step"].clone()
    return placed
