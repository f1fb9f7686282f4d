"""How a LightningModule is run to see its structure: from given inputs, from its own example, or as training does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_coreset._compat import methods_before_compile, tree_leaves, tree_map
from lightning_coreset.structure import Example, ExampleInputs
from lightning_coreset.training.metrics.isolation import isolated
from lightning_coreset.training.metrics.recorder import ForwardRecorder, map_tensors


class ExampleSource:
    """Finds an example of how a LightningModule is run, once in a training run.

    In order of preference: the user's example inputs; the module's ``example_input_array``; its own ``training_step``
    on some samples of the first batch, whose loss then counts as the network's output; and with manual optimisation,
    where a training step cannot be repeated, the module calls that the first real step made.

    Where inputs are given, the training step is a second example: it may call layers that ``forward`` does not.

    Args:
        example_inputs: The user's, or ``None``.
    """

    def __init__(self, example_inputs: ExampleInputs | None = None) -> None:
        self._given = example_inputs
        self._example: Example | None = None
        self._step: Example | None = None
        self._recorder: ForwardRecorder | None = None
        self._seen = False

    def begin(self, pl_module: pl.LightningModule) -> None:
        """Begin a training run."""
        self.end()
        inputs = self._given if self._given is not None else pl_module.example_input_array
        if inputs is not None:
            self._example = Example.of(inputs)

    @property
    def has_inputs(self) -> bool:
        """Whether there are inputs before any batch is seen."""
        return self._example is not None

    @property
    def ready(self) -> bool:
        """Whether there is an example by now; the first batch is always waited for, since it may tell more."""
        return self._example is not None and self._seen

    def see_batch(self, pl_module: pl.LightningModule, batch: Any) -> None:
        """Take the first batch as an example, or watch what the step on it does."""
        if self.ready or self._recorder is not None:
            return
        self._seen = self._example is not None or pl_module.automatic_optimization
        if pl_module.automatic_optimization:
            if batch is None and self._example is not None:
                return
            if batch is None:  # of a `training_step(dataloader_iter)`, which fetches it itself
                raise MisconfigurationException(
                    "Expected a training_step that takes a batch but got one that takes an iterator, which cannot be "
                    "run on an example. Give CoresetPruningCallback(example_inputs=...)."
                )
            kept = move_data_to_device(_few(batch), "cpu")  # it may stay for the whole of training
            self._step = replace(Example.of(kept), run=training_step)
            self._example = self._example or self._step
        elif self._example is None:
            self._recorder = ForwardRecorder(pl_module)
            self._recorder.start()

    def see_step_end(self, batch: Any) -> bool:
        """Stop watching after the first step that called a network; whether there has just come to be an example."""
        if self._recorder is None or not self._recorder.calls:
            return False
        calls = [(call.name, call.args, call.kwargs) for call in self._recorder.calls]
        self.end()
        self._example = Example(calls, recorded_calls, Example.of(batch).batch_size)
        self._seen = True
        return True

    @contextmanager
    def examples(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[list[Example]]:
        """The examples on the module's device, the one to read the structure from first.

        What is run in the block leaves no trace on the module.
        """
        assert self._example is not None

        def placed(example: Example) -> Example:
            inputs = move_data_to_device(example.inputs, pl_module.device)
            inputs = trainer.precision_plugin.convert_input(inputs)
            return Example(inputs, _OnACopy(example.run), example.batch_size)

        known = [self._example] if self._step in (None, self._example) else [self._example, self._step]
        with isolated(pl_module), trainer.precision_plugin.forward_context():
            _run_as_written(pl_module)
            yield [placed(example) for example in known if example is not None]

    def end(self) -> None:
        """Take all hooks off the module and let go of batches."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder.clear()
        self._recorder = self._example = self._step = None
        self._seen = False


class _OnACopy:
    """A run that may write to its inputs or take items out of them, as ``batch.pop("labels")`` does."""

    def __init__(self, run: Callable[[nn.Module, Any], Any]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        return self._run(module, map_tensors(Tensor.clone, inputs))


_ENOUGH = 8
"""Samples of a batch that show the structure as well as all of them, in a fraction of the time and memory."""


def _few(batch: Any) -> Any:
    """The first samples of a batch, if all it holds are tensors of one length; else the batch."""
    leaves = tree_leaves(batch)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves):
        return batch
    if len({len(leaf) for leaf in leaves}) > 1:
        return batch
    return tree_map(lambda leaf: leaf[:_ENOUGH], batch)


def _run_as_written(pl_module: pl.LightningModule) -> None:
    """Give a LightningModule that was compiled as a whole its own methods back: a copy's compiled ones would run it."""
    vars(pl_module).update(methods_before_compile(pl_module))


def training_step(module: nn.Module, batch: Any) -> Any:
    """Run the module's own training step on a batch."""
    step = module.training_step
    return step(batch, 0) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else step(batch)  # type: ignore[operator]


def recorded_calls(module: nn.Module, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Call submodules of a network as they were called before: by name, with arguments and keyword arguments."""
    return [module.get_submodule(name)(*args, **kwargs) for name, args, kwargs in calls]
