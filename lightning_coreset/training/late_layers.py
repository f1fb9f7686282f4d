"""Layers that no step has run so far, and may run later: the channels and the verdicts that wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric, MetricCollection

from lightning_coreset.planning import (
    Request,
    Rule,
    as_rules,
    check_matches,
    layers_that_never_ran,
    layers_with_tensors,
    most_that_can_go,
    names_of,
    unread_groups,
    without_read,
)
from lightning_coreset.qualified_names import listed
from lightning_coreset.structure import Structure

_NEARLY = 0.95
"""This part of a ratio is as good as the whole: channels go one by one."""


class LateLayers:
    """Knows which layers have not run, and says once what waits for them.

    Args:
        request: What is requested at the end of the schedule.
        never_run: Rules for modules that nothing ever runs; the channels that others could read or write stay.

    Raises:
        ValueError: If ``never_run`` is no sequence of rules.
    """

    def __init__(self, request: Request, never_run: Sequence[Rule] = ()) -> None:
        self._request = request
        self._never_run = as_rules(never_run, "never_run")
        self._exempt = (*self._never_run, Metric, MetricCollection)
        self._told: set[str] = set()
        self._missing = ""

    def check_rules(self, pl_module: pl.LightningModule) -> None:
        """Raise ``ValueError`` if a rule matches nothing in a model."""
        check_matches(pl_module, self._never_run, "never_run", second_names=True)

    def without_unread(self, pl_module: pl.LightningModule, structure: Structure) -> Structure:
        """The structure without groups whose channels such a layer could read or write."""
        readers = unread_groups(pl_module, structure, self._request, self._exempt)
        self._missing = names_of(readers)[0] if readers else ""
        new = {group: own for group, own in readers.items() if group not in self._told}
        if new:
            rank_zero_warn(_describe(new))
            self._told.update(new)
        return without_read(structure, readers)

    def explain(self, reached: float, requested: float) -> None:
        """At the end: warn if layers that never ran have kept channels, and less is gone than was requested."""
        if self._missing and reached < _NEARLY * requested:
            rank_zero_warn(
                f"Only {reached:.2%} of the requested {requested:.2%} could be pruned, since {self._missing} ran in no "
                "step so far. If nothing ever runs these layers, say CoresetPruningCallback(never_run=[...])."
            )

    def could_give(self, pl_module: pl.LightningModule, structure: Structure) -> bool:
        """Whether a ratio that cannot be reached with what has run could be, by what such layers hold at most.

        Says so, once: the events wait then.
        """
        if isinstance(self._request.pruning_ratio, Mapping):
            return False  # a rule is about a group, which no other one makes up for
        tensors = layers_with_tensors(pl_module)
        trained = {name for name, one in pl_module.named_parameters() if name not in structure.untrained.uncounted}
        sizes = {name: one.numel() for own in tensors.values() for name, one in own.items() if name in trained}
        late = {
            path: size
            for path in layers_that_never_ran(pl_module, structure, self._exempt)
            if (size := sum(sizes.get(name, 0) for name in tensors[path]))
        }
        held = {name for path in late for name in tensors[path]}  # once, where a layer has two names
        share = sum(sizes.get(name, 0) for name in held) / max(sum(sizes.values()), 1)
        most = most_that_can_go(pl_module, structure, self._request)
        if not late or most + share < self._request.target:
            return False
        layers = sorted(late, key=lambda path: -late[path])
        self._missing = listed([*map(repr, layers)])
        if not self._told.issuperset(late):
            rank_zero_warn(_waits(layers, share, most, self._request.target))
            self._told.update(late)
        return True


def _describe(readers: Mapping[str, Sequence[str]]) -> str:
    layers, groups = names_of(readers)
    return (
        f"{layers} ran in no step so far, and could read or write the channels of {groups}, by width and place: these "
        "stay. Let a step or forward run them before the event, give example_inputs that do, or say "
        "CoresetPruningCallback(never_run=[...])."
    )


def _waits(layers: Sequence[str], share: float, most: float, target: float) -> str:
    return (
        f"Pruning events wait until {listed([*map(repr, layers)])} have run, which hold {share:.1%} of the parameters: "
        f"pruning_ratio={target:g} cannot be reached without them ({most:.4f} at most). If they never run, ask for "
        "less, and say CoresetPruningCallback(never_run=[...])."
    )
