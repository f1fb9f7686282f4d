"""A copy of everything that a pruning event and the training after it change, and the way back: all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_coreset.checkpoint import write_configs
from lightning_coreset.optimizers import innermost_first
from lightning_coreset.surgery import ModelShapes, registered_tensors, resize
from lightning_coreset.training.averaged_models import averages_by_callback, by_state_key
from lightning_coreset.training.early_stopping import early_stopping_callbacks
from lightning_coreset.training.optimizer_state import all_optimizers, copy_optimizers, copy_to_cpu, restore_optimizers
from lightning_coreset.training.outside_copies import OutsideCopies
from lightning_coreset.training.savepoint_form import sealed
from lightning_coreset.training.strategies import run_on_all_ranks, unwrapped
from lightning_coreset.training.undoing import undone_on_failure


class Savepoint:
    """A copy, on the CPU, of all that a pruning event and the training after it change.

    Of the model and of the copies that EMA and SWA keep: all parameters and buffers, and the sizes that modules store.
    Of the optimizers: the state of every parameter. Also the scale of mixed precision and the patience of
    EarlyStopping. Restoring writes to the same objects: parameters, optimizers, parameter groups.

    Learning rates and whatever else schedulers set, epochs, steps and random states are not restored.

    It is plain data, so that it can be part of a checkpoint, and refers to callbacks by their ``state_key`` and to
    parameters by name: a run that is resumed may have others, in another order. What was saved of a callback that is
    gone is ignored; an average that is new begins anew from the restored model.
    :class:`lightning_coreset.surgery.Snapshot` serves within one event: it refers to the old tensors, which training
    would overwrite.

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
        shapes = ModelShapes.of(pl_module)
        averages = averages_by_callback(trainer)
        return cls(
            {
                "shapes": {name: list(shape) for name, shape in shapes.shapes.items()},
                "sizes": dict(shapes.sizes),
                "model": copy_to_cpu(registered_tensors(pl_module)),
                "outside": OutsideCopies.of(trainer, pl_module).to_dict(),
                "averages": {
                    key: copy_to_cpu(registered_tensors(average.model))
                    for key, average in averages.items()
                    if average.model is not None
                },
                "averaged": {
                    key: 0 if average.counter is None else int(average.counter) for key, average in averages.items()
                },
                **copy_optimizers(trainer, pl_module),
                "parameters": [_places(pl_module, optimizer) for optimizer in trainer.optimizers],
                "kinds": [_kinds(optimizer) for optimizer in trainer.optimizers],
                "precision": trainer.precision_plugin.state_dict(),
                "patience": {
                    key: [callback.wait_count, float(callback.best_score)]
                    for key, callback in by_state_key(early_stopping_callbacks(trainer)).items()
                },
            }
        )

    def after(self, pl_module: pl.LightningModule) -> Savepoint:
        """The savepoint once the event has happened, to tell apart the sizes that it changed.

        Further training may change the others, so they are restored only with the tensors of their modules.
        """
        sizes = self._content["sizes"]
        changed = ModelShapes(sizes=sizes).difference(ModelShapes.of(pl_module)).sizes
        others = {name: size for name, size in sizes.items() if name not in changed}
        return Savepoint({**self._content, "sizes": dict(changed), "other_sizes": others})

    def restore(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, then: Callable[[], object] = lambda: None
    ) -> None:
        """Put everything back and drop all gradients; a collective operation.

        If anything raises, on any rank, everything is as it was on all ranks.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            then: Called last, as a part of it.
        """
        optimizers = all_optimizers(trainer, pl_module)
        undone = undone_on_failure(trainer, pl_module, optimizers, contents=True)
        with unwrapped(trainer), undone, _small_parts_undone(trainer):
            lost = run_on_all_ranks(trainer, lambda: self._restore(trainer, pl_module))
            # Compiled code is kept for every shape, see `apply_event`.
            torch.compiler.reset()
            then()
        if lost:
            rank_zero_warn(
                f"The state of {', '.join(lost)} could not be taken back with a pruning event: the run has other "
                "optimizers, or other parameters in them, than before the event. It starts anew; the model is as it "
                "was before the event."
            )

    @torch.no_grad()
    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[str]:
        """Restore, and return the optimizers whose state is lost."""
        content = _by_name(self._content, trainer)
        shapes = _shapes(content, ModelShapes.of(pl_module))
        averages, outside = averages_by_callback(trainer), OutsideCopies.of(trainer, pl_module)
        saved = [
            (average.model, content["averages"].get(key, content["model"]))
            for key, average in averages.items()
            if average.model is not None
        ]
        for model, tensors in ((pl_module, content["model"]), *saved):
            resize(model, shapes)
            _restore_tensors(model, tensors)
            write_configs(model)
        outside.load(content.get("outside", {}))  # version 0.1 has none
        for key, average in averages.items():
            if average.counter is not None:
                average.counter.fill_(content["averaged"].get(key, 0))
        content, lost = _for_optimizers_now(content, trainer, pl_module)
        restore_optimizers(trainer, pl_module, content)
        if content["precision"]:
            trainer.precision_plugin.load_state_dict(content["precision"])
        for key, callback in by_state_key(early_stopping_callbacks(trainer)).items():
            if key in content["patience"]:
                callback.wait_count, best = content["patience"][key]
                callback.best_score = callback.best_score.new_tensor(best)
        return lost

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors, and a digest of them."""
        return sealed(self._content)


def _shapes(content: Mapping[str, Any], present: ModelShapes) -> ModelShapes:
    """What to go back to: all shapes, and the sizes that the event changed or that go with tensors of other shapes."""
    shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
    resized = {name.rpartition(".")[0] for name, shape in shapes.items() if present.shapes.get(name) != shape}
    others = content.get("other_sizes", {})  # version 0.1 has none
    back = {name: size for name, size in others.items() if name.rpartition(".")[0] in resized}
    return ModelShapes(shapes, {**back, **content["sizes"]})


def _by_name(content: Mapping[str, Any], trainer: pl.Trainer) -> Mapping[str, Any]:
    """A content of version 0.1, which had averages and patience by place: they are ignored if their number differs."""
    if "models" not in content:
        return content
    averages, patient = averages_by_callback(trainer), by_state_key(early_stopping_callbacks(trainer))
    models = [key for key, average in averages.items() if average.model is not None]
    first, *others = content["models"]
    return {
        **content,
        "model": first,
        "averages": _zipped(models, others),
        "averaged": _zipped(list(averages), content["averaged"]),
        "patience": _zipped(list(patient), content["patience"]),
    }


def _zipped(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else {}


def _restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in registered_tensors(model).items():
        tensor.grad = None
        if name in tensors:
            tensor.data.copy_(tensors[name])


# ---- optimizers

_OPTIONS = ("amsgrad", "centered")
"""With these, torch's optimizers keep one tensor more for each parameter."""


def _for_optimizers_now(
    content: Mapping[str, Any], trainer: pl.Trainer, pl_module: pl.LightningModule
) -> tuple[Mapping[str, Any], list[str]]:
    """The content with the states of the optimizers as they are now, and the names of those that have none in it."""
    saved, places = content["optimizers"], content.get("parameters")  # version 0.1 has no places
    kinds = content.get("kinds")  # nor have savepoints of before all kinds
    fits = len(saved) == len(trainer.optimizers)
    states, lost = [], []
    for number, optimizer in enumerate(trainer.optimizers):
        layers = list(innermost_first(optimizer))
        other_kind = bool(kinds) and fits and kinds[number] != _kinds(optimizer)
        if not fits or len(saved[number]) != len(layers) or other_kind:
            states.append([{} for _ in layers])
            lost.append(type(optimizer).__name__)
        elif places is None:
            states.append(saved[number])
        else:
            now = _places(pl_module, optimizer)
            moves = {place: now.get(name) for name, place in places[number].items()}
            states.append([_moved(state, moves) for state in saved[number]])
    others = {} if fits else {"other_optimizers": [], "held_tensors": []}
    return {**content, "optimizers": states, **others}, lost


def _moved(state: Mapping[int | str, Any], moves: Mapping[int, int | None]) -> dict[int | str, Any]:
    """An optimizer's state with every parameter at its place of now; those that are gone are left out."""
    places = {key: moves.get(key, key) if isinstance(key, int) else key for key in state}
    return {place: state[key] for key, place in places.items() if place is not None}


def _kinds(optimizer: Any) -> list[str]:
    """What decides which state an optimizer and those that it wraps keep: their classes, and two options of torch."""
    return [" ".join([type(layer).__name__, *_options(layer)]) for layer in innermost_first(optimizer)]


def _options(layer: Any) -> list[str]:
    return [name for name in _OPTIONS if any(group.get(name) for group in getattr(layer, "param_groups", []))]


def _places(pl_module: pl.LightningModule, optimizer: Any) -> dict[str, int]:
    """Where an optimizer has the parameters of the module, in the order of its groups."""
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return {names[id(one)]: place for place, one in enumerate(parameters) if id(one) in names}


# ---- what else goes back


@contextmanager
def _small_parts_undone(trainer: pl.Trainer) -> Iterator[None]:
    """Undo what the block does to counters of averages, the scale of mixed precision and patience, if it raises."""
    counters = [average.counter for average in averages_by_callback(trainer).values() if average.counter is not None]
    numbers, precision = copy_to_cpu(counters), trainer.precision_plugin.state_dict()
    patience = [(callback, callback.wait_count, callback.best_score) for callback in early_stopping_callbacks(trainer)]
    try:
        yield
    except BaseException:
        for counter, number in zip(counters, numbers, strict=True):
            counter.copy_(number)
        if precision:
            trainer.precision_plugin.load_state_dict(precision)
        for callback, waited, best in patience:
            callback.wait_count, callback.best_score = waited, best
        raise
