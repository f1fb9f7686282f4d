"""The state that an optimizer makes of a parameter when it is given it."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from torch import Tensor

from lightning_coreset.nested import attributes_of
from lightning_coreset.optimizers.discovery import parameters_of


def initial_state(optimizer: Any, parameter: Tensor) -> dict[Any, Any] | None:
    """The state that an optimizer makes in ``add_param_group``; ``None`` if it makes it in its next step.

    Found out with a copy of the optimizer that shares nothing with it but the parameters.
    """
    group = next((group for group in optimizer.param_groups if any(p is parameter for p in group["params"])), None)
    if group is None or not isinstance(getattr(optimizer, "__dict__", None), dict):
        return None
    options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    shared = {id(each): each for each in parameters_of(optimizer)}
    try:
        twin = object.__new__(type(optimizer))
        for name, value in attributes_of(optimizer).items():
            if name not in ("state", "param_groups"):
                setattr(twin, name, copy.deepcopy(value, shared))
        twin.state, twin.param_groups = defaultdict(dict), []
        twin.add_param_group({**copy.deepcopy(options, shared), "params": [parameter]})
        state = twin.state.get(parameter)
        twin.state, twin.param_groups = defaultdict(dict), []  # nobody shall find it, until it is collected
    except Exception:  # an optimizer that cannot be copied in this way makes its state in its steps, as nearly all do
        return None
    return state or None
