"""Which groups have an influence on outputs: without any, a trial of their removal proves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.structure import ChannelGroup, local_collectives, plain_execution
from lightning_coreset.surgery import named_tensors
from lightning_coreset.verification.choices import MadeChoices
from lightning_coreset.verification.depthwise import depthwise_convolutions
from lightning_coreset.verification.randomised import noise
from lightning_coreset.verification.reference import FixedWeights, kept_weights, readers, zero_
from lightning_coreset.verification.removed import removed_classes
from lightning_coreset.verification.runs import Run
from lightning_coreset.verification.saved_activations import compares, forbids_hooks, kept_in_two_bytes
from lightning_coreset.verification.tried_network import TriedNetwork

_FEW = 3
"""Groups that are tried one by one rather than by a gradient, which takes as long as some runs, and memory."""


class Influence:
    """Finds the groups whose consumers have an influence: by gradients, and by setting them to zero.

    Args:
        network: The network.
    """

    def __init__(self, network: TriedNetwork) -> None:
        self._network = network
        self._readers: set[str] = set()  # consumers on which an output is known to depend

    def without_effect(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The groups whose consumers have no influence on any output, so that the trial proved nothing."""
        shown: set[str] = set()

        def idle() -> list[ChannelGroup]:
            return [group for group in groups if not self._shown(group) and group.name not in shown]

        with suppress(Exception):  # a network that checks values, and refuses these zeros
            if 0 < len(few := idle()) <= _FEW:
                shown = {group.name for group in few} - {group.name for group in self._silent(few)}
        try:
            for run in self._network.runs:
                if left := idle():
                    self.look(run, left)
        except Exception:  # a network that cannot be differentiated: each group is tried
            self._readers.clear()
        silent = self._silent(idle())  # the gradient may have been disabled, or really be zero
        reason = "its removal cannot be tried, since it has no influence on the outputs of the example inputs"
        return dict.fromkeys((group.name for group in silent), reason)

    def _silent(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """The groups whose consumers can be set to zero without a difference to any output."""
        silent = list(groups)
        for run in self._network.runs:
            expected = self._network.outputs([run]) if silent else []
            silent = [
                group for group in silent if self._network.difference(self._without(group, run), expected) is None
            ]
        return silent

    def _without(self, group: ChannelGroup, run: Run) -> list[Tensor]:
        """What a run computes with the consumers of some channels of a group at zero."""
        fixed = FixedWeights(named_tensors(self._network.model), [group])
        removed = removed_classes([group])
        with kept_weights(fixed.tensors, [group], removed, self._network.virtual):
            zero_(fixed.tensors, readers(group), removed[group.name])
            return self._network.outputs([run], modes=fixed.modes)

    def look(
        self, run: Run, groups: Sequence[ChannelGroup], choices: MadeChoices | None = None, **options: Any
    ) -> list[Tensor]:
        """Note which consumers of groups some output depends on, by its gradient in one run, and return the outputs.

        Args:
            run: The run.
            groups: The groups.
            choices: What the network is to choose.
            options: How to run it.
        """
        try:
            outputs, finite = self._differentiated(run, groups, choices, rounded=True, **options)
        except Exception as error:
            if not forbids_hooks(error):
                raise
            return self._differentiated(run, groups, choices, rounded=False, **options)[0]
        if not finite:  # rounding may be the cause: it makes equal numbers unequal, and small ones zero
            self._differentiated(run, groups, choices, rounded=False, **options)
        return outputs

    def _differentiated(
        self,
        run: Run,
        groups: Sequence[ChannelGroup],
        choices: MadeChoices | None,
        *,
        rounded: bool,
        **options: Any,
    ) -> tuple[list[Tensor], bool]:
        """Note what the gradients in a run show, with what is kept for them rounded or as it is.

        Returns:
            The outputs, and whether all gradients are finite; not if rounding could make others of them.
        """
        consumers = {member.name for group in groups for member in readers(group)}
        parameters = {
            name: tensor.requires_grad_(True)
            for name, tensor in named_tensors(self._network.model).items()
            if name in consumers and tensor.is_floating_point()
        }
        finite = True
        with ExitStack() as stack:
            if self._network.virtual is not None:
                stack.enter_context(self._network.virtual.freed.sparing())
            concerned = [] if choices is None else [choices.repeated()]
            with kept_in_two_bytes() if rounded else nullcontext():
                outputs = self._network.outputs([run], gradients=True, concerned=concerned, **options)
            differentiable = [tensor for tensor in outputs if tensor.requires_grad]
            if differentiable and parameters:
                for mode in depthwise_convolutions(self._network.model):
                    stack.enter_context(mode)
                if rounded and compares(differentiable):
                    finite = False
                else:
                    found, finite = _with_gradients(differentiable, parameters)
                    self._readers |= found
            outputs = [tensor.detach() for tensor in outputs]
            del differentiable
        return outputs, finite

    def _shown(self, group: ChannelGroup) -> bool:
        """Whether an output is known to depend on the consumers of a group."""
        return any(one.name in self._readers for one in readers(group))


def _with_gradients(outputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> tuple[set[str], bool]:
    """The names of the parameters whose gradient is not zero, and whether all gradients are finite.

    Each gradient is let go of as soon as it is known. One that is not finite shows nothing: infinity times zero is not
    zero.
    """
    found: set[str] = set()
    finite: set[bool] = set()

    def see(name: str, tensor: Tensor) -> None:
        gradient = tensor.grad
        tensor.grad = None
        if gradient is None or gradient.numel() == 0:
            return
        numbers = torch.stack(gradient.aminmax())
        finite.add(bool(numbers.isfinite().all()))
        if bool((gradient[gradient.isfinite()] if False in finite else numbers).any()):
            found.add(name)

    before = {name: tensor.grad for name, tensor in parameters.items()}
    handles = []
    for name, tensor in parameters.items():
        tensor.grad = None
        handles.append(tensor.register_post_accumulate_grad_hook(partial(see, name)))
    generator = torch.Generator().manual_seed(0)
    try:
        # What a checkpointed part computes again has to be computed in the same way.
        with plain_execution(), torch.enable_grad(), local_collectives():
            # Random weights, since plain sums cancel, as behind a softmax.
            weighted = [(output * noise(output, generator)).nansum().cpu() for output in outputs]
            torch.autograd.backward(torch.stack(weighted).sum(), inputs=list(parameters.values()))
    finally:
        for handle in handles:
            handle.remove()
        for name, tensor in parameters.items():
            tensor.grad = before[name]
    return found, False not in finite
