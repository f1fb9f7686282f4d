"""How a LightningModule is run to read its structure: on given inputs, its own example, or a training batch."""

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
from lightning_coreset.nested import map_tensors
from lightning_coreset.structure import Example, ExampleInputs
from lightning_coreset.training.metrics import ForwardRecorder, isolated


class ExampleSource:
    """Finds an example of how a LightningModule is run, once in a training run.

    In order of preference: the user's example inputs; the module's ``example_input_array``; its own ``training_step``
    on some samples of the first batch, whose loss then counts as the network's output; and with manual optimization,
    where a training step cannot be repeated, the calls of modules in the first real step.

    If inputs are given, the training step is a second example: it may call layers that ``forward`` does not.

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
        """Start a training run."""
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
        """Whether there is an example; true only after the first batch, since its step may call more layers."""
        return self._example is not None and self._seen

    def see_batch(self, pl_module: pl.LightningModule, batch: Any) -> None:
        """Take the first batch as an example, or record the calls of the step on it."""
        if self.ready or self._recorder is not None:
            return
        self._seen = self._example is not None or pl_module.automatic_optimization
        if pl_module.automatic_optimization:
            if batch is None and self._example is not None:
                return
            if batch is None:  # a `training_step(dataloader_iter)` fetches it itself
                raise MisconfigurationException(
                    "Expected a training_step that takes a batch but got one that takes an iterator, which cannot be "
                    "run on an example. Give CoresetPruningCallback(example_inputs=...)."
                )
            kept = move_data_to_device(_first_samples(batch), "cpu")  # kept until the end of training
            self._step = replace(Example.of(kept), run=training_step)
            self._example = self._example or self._step
        elif self._example is None:
            self._recorder = ForwardRecorder(pl_module)
            self._recorder.start()

    def see_step_end(self, batch: Any) -> bool:
        """Stop recording after the first step that called a network; return whether it is now the example."""
        if self._recorder is None or not self._recorder.calls:
            return False
        calls = [(call.name, call.args, call.kwargs) for call in self._recorder.calls]
        self.end()
        self._example = Example(calls, recorded_calls, Example.of(batch).batch_size)
        self._seen = True
        return True

    @contextmanager
    def examples(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[list[Example]]:
        """The examples on the module's device; the structure is read from the first.

        Side effects on the module of what is run in the block are undone.
        """
        assert self._example is not None

        def placed(example: Example) -> Example:
            inputs = move_data_to_device(example.inputs, pl_module.device)
            inputs = trainer.precision_plugin.convert_input(inputs)
            return Example(inputs, _OnACopy(example.run), example.batch_size)

        examples = [self._example] if self._step in (None, self._example) else [self._example, self._step]
        with isolated(pl_module), trainer.precision_plugin.forward_context():
            _run_as_written(pl_module)
            yield [placed(example) for example in examples if example is not None]

    def end(self) -> None:
        """Remove all hooks from the module and drop batches."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder.clear()
        self._recorder = self._example = self._step = None
        self._seen = False


class _OnACopy:
    """Runs on a copy of the inputs: a step may write to them, or remove items as ``batch.pop("labels")`` does."""

    def __init__(self, run: Callable[[nn.Module, Any], Any]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        return self._run(module, map_tensors(Tensor.clone, inputs))


_SAMPLES = 8
"""A few samples show the same structure as the whole batch, and take less time and memory."""


def _first_samples(batch: Any) -> Any:
    """The first samples of a batch that holds only tensors of one length; any other batch as it is."""
    leaves = tree_leaves(batch)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves):
        return batch
    if len({len(leaf) for leaf in leaves}) > 1:
        return batch
    return tree_map(lambda leaf: leaf[:_SAMPLES], batch)


def _run_as_written(pl_module: pl.LightningModule) -> None:
    """Give a LightningModule that was compiled as a whole its methods back: those of a copy would run the original."""
    vars(pl_module).update(methods_before_compile(pl_module))


def training_step(module: nn.Module, batch: Any) -> Any:
    """Run the module's own training step on a batch."""
    step = module.training_step
    return step(batch, 0) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else step(batch)  # type: ignore[operator]


def recorded_calls(module: nn.Module, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Call submodules of a network as in the recorded step: names, arguments and keyword arguments."""
    return [module.get_submodule(name)(*args, **kwargs) for name, args, kwargs in calls]
