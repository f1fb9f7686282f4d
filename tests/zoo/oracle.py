"""Is a group right? Removing its channels must do what is defined as their removal, and nothing else.

The network with channels removed must compute what the whole network computes in which every reduction takes kept
channels only and the consumers' positions of removed ones are zero (``kept_only.py``). That one must differ from the
network as it was (else nothing was tested), and must not notice when the weights that make the removed channels change
(else the channels leak past their consumers).

Channels over which nothing is normalised are zeros behind their consumers, no more: there the plain network with zeroed
consumers is a second, independent oracle, and the two must agree.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from weight_norms import is_weight_normed, with_plain_weights

from lightning_coreset.planning.problem import prunable
from lightning_coreset.planning.request import Request
from lightning_coreset.structure import ChannelGroup, Structure, analyse
from lightning_coreset.surgery import apply_changes, named_tensors, remove_channels, scale_counts, slice_members

from .entry import Entry, Inputs
from .inspection import Kind, Verdict, fingerprint, malformed, reachable, tensors, wrong_attributes
from .kept_only import Removed, kept_only
from .lockstep import DivergedError
from .running import as_double, call, distance, duplicate, evaluate, flat, randomise

TOLERANCE = 1e-9
NO_GROUP_CHANGES = 1e-5  # a zeroing must move the outputs by more than this, relatively, to have tested anything


@dataclass(frozen=True)
class Record:
    """One row of the table of all networks.

    Attributes:
        name: The network.
        groups: Number of groups.
        classes: Channels (classes) in all groups together.
        parameters: Elements of all parameters.
        by_default: Elements that lie in a row or column of some group that may shrink by default.
        reachable: The same with ``include_residual=True``.
        refused: Layers without a group, each with the reason.
        verdicts: The oracle's word on the groups that it tried.
    """

    name: str
    groups: int
    classes: int
    parameters: int
    by_default: int
    reachable: int
    refused: Mapping[str, str]
    verdicts: tuple[Verdict, ...]


def survey(entry: Entry, *, limit: int = 6) -> Record:
    """Finds the groups of a network and judges at most ``limit`` of them."""
    model = build(entry)
    structure = search(entry, model)
    verdicts = examine(entry, model, structure.groups, limit=limit)
    sound = [group for group in structure.groups if not excused(entry, group.name)]
    inner, _ = prunable(model, structure, Request(0.5))
    default, whole = (reachable(model, [one for one in sound if one in groups]) for groups in (inner, sound))
    classes = sum(group.size for group in structure.groups)
    total = sum(parameter.numel() for parameter in model.parameters())
    return Record(
        entry.name, len(structure.groups), classes, total, default, whole, dict(structure.refused), verdicts
    )  # fmt: skip


def build(entry: Entry) -> nn.Module:
    """Builds the network under a fixed seed, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return entry.build()


def search(entry: Entry, model: nn.Module) -> Structure:
    """Finds the groups, which must leave the network and the random state as they were."""
    inputs = entry.inputs(Generator().manual_seed(1))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        call(model.eval(), inputs)  # some networks put their own hooks in place when they first run
    model.train()
    before, randomness = fingerprint(model), torch.random.get_rng_state()
    structure = analyse(model, inputs)
    assert fingerprint(model) == before, "finding groups changed the network"
    assert torch.equal(torch.random.get_rng_state(), randomness), "finding groups changed the random state"
    return structure


def examine(entry: Entry, model: nn.Module, groups: Sequence[ChannelGroup], *, limit: int = 6) -> tuple[Verdict, ...]:
    """The oracle's verdicts on a sample of groups (the first, the last, some at random between), and on all at once."""
    faults = list(malformed(model, groups))
    if faults:
        return tuple(faults)
    inner = list(groups[1:-1])
    random.Random(0).shuffle(inner)
    sample = [*groups[:1], *inner[: max(0, limit - 2)], *groups[1:][-1:]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = duplicate(model)
        generator = Generator().manual_seed(3)
        inputs = [entry.inputs(generator) for _ in range(2)]
        if is_weight_normed(model):  # what is rescaled is rounded
            reference, inputs = reference.double(), [as_double(one) for one in inputs]
        randomise(reference, inputs[0], Generator().manual_seed(2))
        verdicts = [judge(reference, inputs, group, train=entry.train) for group in sample]
        sound = [group for group in groups if not excused(entry, group.name)]
        if len(sound) > 1 and all(one.kind == "right" or excused(entry, one.group) for one in verdicts):
            verdicts.append(judge_together(reference, inputs, sound))
        return tuple(verdicts)


def excused(entry: Entry, group: str) -> bool:
    """Whether the forward pass names the width of this group in numbers."""
    return any(fnmatch.fnmatch(group, pattern) for pattern in entry.hard)


def judge(model: nn.Module, inputs: Sequence[Inputs], group: ChannelGroup, *, train: bool = False) -> Verdict:
    """Compares removal with zeroed consumers on all inputs, with 30% of the classes, chosen at random.

    Args:
        model: The network, with randomised statistics; it stays as it is.
        inputs: Inputs to compare on.
        group: The group to judge.
        train: Compare in train mode as well.
    """
    modes = (False, True) if train else (False,)
    runs = [(one, mode) for mode in modes for one in inputs]
    whole = [evaluate(model, *run) for run in runs]
    changed = False
    for seed in range(3):
        removed = choose(group, seed)
        expected, fault = reference(with_plain_weights(model), [(group, removed)], runs)
        if fault:
            return Verdict(group.name, *fault)
        cut = duplicate(model)
        try:
            remove_channels(cut, group, removed)
            found = [evaluate(cut, *run) for run in runs]
        except Exception as error:
            return Verdict(group.name, "exception", f"{type(error).__name__}: {error}")
        error = max(map(distance, found, expected))
        if not error <= TOLERANCE:
            return Verdict(group.name, "wrong output", f"relative error {error:.1e}")
        faults = [*wrong_attributes(cut), *backward_faults(model, cut, inputs[0])]
        if faults:
            return Verdict(group.name, "backward" if "backward" in faults[0] else "attributes", faults[0])
        if max(map(distance, expected, whole)) > NO_GROUP_CHANGES:
            changed = True
            break
    return Verdict(group.name, "right" if changed else "vacuous", "" if changed else "zeroing changed no output")


def judge_together(model: nn.Module, inputs: Sequence[Inputs], groups: Sequence[ChannelGroup]) -> Verdict:
    """Compares the removal of 30% of every group at once, as a pruning step does it."""
    removed = [(group, choose(group, 0)) for group in groups]
    kept = [(group, [i for i in range(group.size) if i not in gone]) for group, gone in removed]
    runs = [(one, False) for one in inputs]
    expected, fault = reference(with_plain_weights(model), removed, runs)
    if fault:
        return Verdict("all groups", *fault)
    cut = duplicate(model)
    try:
        apply_changes(cut, slice_members(named_tensors(cut), kept), scale_counts(cut, kept))
        found = [evaluate(cut, *run) for run in runs]
    except Exception as error:
        return Verdict("all groups", "exception", f"{type(error).__name__}: {error}")
    error = max(map(distance, found, expected))
    if not error <= TOLERANCE:
        return Verdict("all groups", "wrong output", f"relative error {error:.1e}")
    return Verdict("all groups", "right")


def reference(
    model: nn.Module, removed: Removed, runs: Sequence[tuple[Inputs, bool]]
) -> tuple[list[list[Tensor]], tuple[Kind, str] | None]:
    """What the network computes without the removed classes in every run, and a fault if that is not well defined."""
    try:
        both = [kept_only(model, removed, *run) for run in runs]
    except DivergedError as error:
        return [], ("leak", f"the weights of removed channels decide about {error}")
    expected = [one for one, _ in both]
    leak = max(distance(other, one) for one, other in both)
    if not leak <= TOLERANCE:
        return expected, ("leak", f"the weights of removed channels move the outputs by {leak:.1e}")
    if not any(getattr(group, "normalized", False) for group, _ in removed):
        zeroed = duplicate(model)
        for group, classes in removed:
            zero_consumers(zeroed, group, classes)
        error = max(distance(evaluate(zeroed, *run), one) for run, one in zip(runs, expected, strict=True))
        if not error <= TOLERANCE:
            return expected, ("leak", f"channels that are zero, not gone, move the outputs by {error:.1e}")
    return expected, None


def choose(group: ChannelGroup, seed: int) -> list[int]:
    """About 30% of the classes, at least one, or as many as have to go at a time; at least one stays."""
    at_a_time = group.multiple
    count = min(max(at_a_time, round(0.3 * group.size / at_a_time) * at_a_time), group.size - 1)
    return sorted(random.Random(seed).sample(range(group.size), count))


def zero_consumers(model: nn.Module, group: ChannelGroup, removed: Sequence[int]) -> None:
    """Sets the consumers' positions of the removed classes to zero."""
    for tensor, dim, places in positions(model, group, removed, ("consumer",)):
        tensor.index_fill_(dim, places, 0)


def positions(
    model: nn.Module, group: ChannelGroup, removed: Sequence[int], roles: tuple[str, ...]
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Tensor, dimension and positions of the removed classes for the members of some roles; without gradients."""
    named = tensors(model)
    for member in group.members:
        places = [place for number in removed for place in member.index[number]]
        if member.role in roles and places:
            yield named[member.name].detach(), member.dim, torch.tensor(places)


def backward_faults(model: nn.Module, cut: nn.Module, inputs: Inputs) -> list[str]:
    """A training step's backward pass runs on the cut network wherever it runs on the whole one."""

    def step(network: nn.Module) -> str:
        network = duplicate(network).train()
        try:
            real = [one for one in flat(call(network, inputs)) if one.is_floating_point()]
            sum(one.double().sum() for one in real).backward()
        except Exception as error:
            return f"backward: {type(error).__name__}: {error}"
        wrong = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.shape != p.shape]
        return f"backward: gradients of another shape: {wrong}" if wrong else ""

    fault = step(cut)
    return [fault] if fault and not step(model) else []
