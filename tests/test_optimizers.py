import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_coreset.optimizers import StateSnapshot, all_layers, held_tensors, slice_optimizer_state
from lightning_coreset.plan import ParameterChange

KEPT = torch.tensor([0, 2, 3, 6])
KEPT_IN = torch.tensor([1, 2, 4])
# name: old shape, kept. A producer, its bias, a consumer, a layer that is both, one that does not change.
PARAMETERS = {
    "weight": ((8, 5), {0: KEPT}),
    "bias": ((8,), {0: KEPT}),
    "consumer": ((4, 8), {1: KEPT}),
    "conv": ((8, 5, 3, 3), {0: KEPT, 1: KEPT_IN}),
    "single": ((8, 1), {0: KEPT}),
    "alone": ((4, 3), {}),
}

ELEMENTWISE = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, foreach=False),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "adam-tensor-lr": lambda p: torch.optim.Adam(p, torch.tensor(0.1), foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "adamax": lambda p: torch.optim.Adamax(p, 0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, centered=True, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1, t0=1),
}


def make(names=tuple(PARAMETERS), seed=0, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name in names:
        value = torch.randn(PARAMETERS[name][0], generator=generator)
        parameters[name] = nn.Parameter(value.to(memory_format=memory_format) if value.ndim == 4 else value)
    return parameters


def take(tensor, kept):
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index)
    return tensor.clone()


def step(optimizer, parameters, gradients):
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    optimizer.zero_grad()


def gradients(seed, names=tuple(PARAMETERS), pruned=False):
    generator = torch.Generator().manual_seed(seed)
    grads = {name: torch.randn(PARAMETERS[name][0], generator=generator) for name in names}
    return {name: take(grad, PARAMETERS[name][1]) for name, grad in grads.items()} if pruned else grads


def prune(parameters):
    changes = {}
    for name, parameter in parameters.items():
        old, kept = PARAMETERS[name]
        if kept:
            parameter.data = take(parameter.data, kept)
            changes[parameter] = ParameterChange(name, old, tuple(parameter.shape), kept)
    return changes


def dense_and_pruned(build, names=tuple(PARAMETERS)):
    """Train twice for three steps, prune one of the two, then make both take two more steps on the same gradients."""
    dense, pruned = make(names), make(names)
    dense_optimizer, pruned_optimizer = build(list(dense.values())), build(list(pruned.values()))
    for seed in (1, 2, 3):
        step(dense_optimizer, dense, gradients(seed, names))
        step(pruned_optimizer, pruned, gradients(seed, names))
    assert slice_optimizer_state(pruned_optimizer, prune(pruned)) == ()
    for seed in (4, 5):
        step(dense_optimizer, dense, gradients(seed, names))
        step(pruned_optimizer, pruned, gradients(seed, names, pruned=True))
    return [(take(dense[n].data, PARAMETERS[n][1]), pruned[n].data) for n in names]


@pytest.mark.parametrize("build", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_next_steps_equal_the_dense_ones(build):
    for dense, pruned in dense_and_pruned(build):
        torch.testing.assert_close(pruned, dense, rtol=0, atol=0)


def test_adafactor_is_close_to_the_dense_steps():
    # Its factored variances are means over rows and columns, and its step is scaled by norms of the whole tensor: these
    # are of fewer elements now, so that equality cannot be had. It is off by 3e-4 here, and by 8e-4 to 3e-3 with the
    # state lost.
    for dense, pruned in dense_and_pruned(lambda p: torch.optim.Adafactor(p, 1e-3)):
        torch.testing.assert_close(pruned, dense, rtol=0, atol=5e-4)


def test_adafactor_keeps_the_dimension_that_is_factored_out():
    parameters = make(["weight"])
    optimizer = torch.optim.Adafactor(parameters.values())
    step(optimizer, parameters, gradients(1))
    before = {key: value.clone() for key, value in optimizer.state[parameters["weight"]].items()}

    assert slice_optimizer_state(optimizer, prune(parameters)) == ()

    after = optimizer.state[parameters["weight"]]
    assert torch.equal(after["row_var"], before["row_var"][KEPT])
    assert torch.equal(after["col_var"], before["col_var"])
    assert torch.equal(after["step"], before["step"])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")
def test_muon_keeps_its_momentum():
    # Only its state can be compared: orthogonalizing the momentum makes every element depend on all the others.
    parameters = make(["weight", "consumer"])
    optimizer = torch.optim.Muon(parameters.values(), lr=0.1)
    step(optimizer, parameters, gradients(1))
    before = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in parameters.items()}

    assert slice_optimizer_state(optimizer, prune(parameters)) == ()

    for name, parameter in parameters.items():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], take(before[name], PARAMETERS[name][1]))
    step(optimizer, parameters, gradients(2, pruned=True))


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "LightningOptimizer"])
def test_lbfgs_is_reset(wrap):
    layer = nn.Linear(4, 6)
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, max_iter=3)
    data = torch.randn(16, 4)

    def closure():
        optimizer.zero_grad()
        loss = layer(data).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()  # the loss itself would keep a graph of the old shapes alive
    kept = torch.tensor([1, 4, 5])
    for parameter in layer.parameters():
        parameter.grad, parameter.data = None, parameter.data[kept]
    changes = {
        layer.weight: ParameterChange("weight", (6, 4), (3, 4), {0: kept}),
        layer.bias: ParameterChange("bias", (6,), (3,), {0: kept}),
    }

    wrapped: Any = LightningOptimizer(optimizer) if wrap else optimizer
    assert slice_optimizer_state(wrapped, changes) == ("weight", "bias")
    assert not optimizer.state
    optimizer.step(closure)
    assert closure() < first
    assert slice_optimizer_state(torch.optim.LBFGS(layer.parameters()), changes) == ()  # had nothing to lose


def test_lbfgs_of_other_parameters_is_left_alone():
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(3))])
    optimizer.state[optimizer.param_groups[0]["params"][0]]["func_evals"] = 7

    assert slice_optimizer_state(optimizer, prune(make())) == ()
    assert optimizer.state


UNKNOWN = {
    "other-shape": torch.zeros(8, 8),
    "other-rank": torch.zeros(8),
    "longer": torch.zeros(9, 5),
    "list": [torch.zeros(8, 5)],
    "object": object(),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_state_is_reset_for_that_parameter_alone(unknown):
    parameters = make()
    optimizer = torch.optim.Adam(parameters.values(), 0.1)
    step(optimizer, parameters, gradients(1))
    optimizer.state[parameters["weight"]]["unknown"] = unknown
    expected = take(optimizer.state[parameters["consumer"]]["exp_avg"], {1: KEPT})

    assert slice_optimizer_state(optimizer, prune(parameters)) == ("weight",)

    assert parameters["weight"] not in optimizer.state
    assert torch.equal(optimizer.state[parameters["consumer"]]["exp_avg"], expected)
    step(optimizer, parameters, gradients(2, pruned=True))  # starts it anew
    assert optimizer.state[parameters["weight"]]["step"] == 1
    assert optimizer.state[parameters["consumer"]]["step"] == 2


def test_scalars_of_every_kind_are_kept():
    parameters = make(["weight"])
    optimizer = torch.optim.SGD(parameters.values(), 0.1)
    scalars = {
        "int": 3,
        "none": None,
        "zero_dim": torch.tensor(3, dtype=torch.int64),
        "one_element": torch.tensor([0.5], dtype=torch.float64),
    }
    optimizer.state[parameters["weight"]] = dict(scalars)

    assert slice_optimizer_state(optimizer, prune(parameters)) == ()
    assert all(optimizer.state[parameters["weight"]][key] is value for key, value in scalars.items())


def test_dtype_and_memory_format_are_kept_and_memory_is_freed():
    parameters = make(["conv"], memory_format=torch.channels_last)
    conv = parameters["conv"]
    optimizer = torch.optim.SGD([conv], 0.1)
    state = torch.randn(8, 5, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    optimizer.state[conv] = {"buffer": state}
    changes = prune(parameters)
    conv.data = conv.data.contiguous(memory_format=torch.channels_last)

    slice_optimizer_state(optimizer, changes)

    sliced = optimizer.state[conv]["buffer"]
    assert sliced.dtype == torch.bfloat16
    assert sliced.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(sliced, take(state, PARAMETERS["conv"][1]))
    assert sliced.untyped_storage().nbytes() == sliced.numel() * 2


def test_a_change_of_value_alone_keeps_the_state():
    parameters = make(["alone"])
    optimizer = torch.optim.SGD(parameters.values(), 0.1, momentum=0.9)
    step(optimizer, parameters, gradients(1))
    momentum = optimizer.state[parameters["alone"]]["momentum_buffer"]
    optimizer.state[parameters["alone"]]["unknown"] = object()
    change = ParameterChange("alone", (4, 3), (4, 3), {}, value=torch.zeros(4, 3))

    assert slice_optimizer_state(optimizer, {parameters["alone"]: change}) == ()
    assert optimizer.state[parameters["alone"]]["momentum_buffer"] is momentum


def test_groups_scheduler_and_missing_state_are_left_alone():
    parameters = make()
    optimizer = torch.optim.AdamW([{"params": [p], "lr": 0.1 / (i + 1)} for i, p in enumerate(parameters.values())])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    groups = [(group, list(group["params"])) for group in optimizer.param_groups]
    options = [{k: v for k, v in group.items() if k != "params"} for group, _ in groups]
    before = copy.deepcopy(scheduler.state_dict())

    assert slice_optimizer_state(optimizer, prune(parameters)) == ()

    assert not optimizer.state  # it is a defaultdict
    assert scheduler.optimizer is optimizer
    assert scheduler.state_dict() == before
    for now, (group, members), option in zip(optimizer.param_groups, groups, options, strict=True):
        assert now is group
        assert all(a is b for a, b in zip(now["params"], members, strict=True))
        assert {k: v for k, v in now.items() if k != "params"} == option


def test_lightnings_wrapper_hands_out_a_state_that_is_sliced_once():
    parameters = make(["weight"])
    optimizer = torch.optim.Adam(parameters.values())
    step(optimizer, parameters, gradients(1))
    wrapped: Any = LightningOptimizer(optimizer)

    assert slice_optimizer_state(wrapped, prune(parameters)) == ()
    assert optimizer.state[parameters["weight"]]["exp_avg"].shape == (4, 5)


def test_state_of_a_wrapper_is_sliced_too():
    class Lookahead:
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups
            self.state = {p: {"slow": p.data.clone()} for g in self.param_groups for p in g["params"]}

    parameters = make(["weight"])
    inner = torch.optim.Adam(parameters.values())
    step(inner, parameters, gradients(1))
    wrapper: Any = Lookahead(inner)

    assert slice_optimizer_state(wrapper, prune(parameters)) == ()
    assert wrapper.state[parameters["weight"]]["slow"].shape == (4, 5)
    assert inner.state[parameters["weight"]]["exp_avg"].shape == (4, 5)


def test_a_proxy_of_what_is_gone_is_no_optimizer():
    class Gone:
        pass

    parameters = make(["weight"])
    optimizer = torch.optim.Adam(parameters.values())
    gone = Gone()
    optimizer.owner, optimizer.owners = weakref.proxy(gone), [weakref.proxy(gone)]  # type: ignore[attr-defined]
    del gone
    gc.collect()
    assert list(all_layers(optimizer)) == [optimizer]
    assert held_tensors(optimizer) == []


def test_parameters_that_have_not_changed_yet_are_refused():
    parameters = make(["bias", "weight"])
    optimizer = torch.optim.Adam(parameters.values())
    step(optimizer, parameters, gradients(1))
    changes = prune(parameters)
    parameters["weight"].data = torch.zeros(8, 5)

    with pytest.raises(ValueError, match=r"'weight' to have its new shape \(4, 5\) but got \(8, 5\)"):
        slice_optimizer_state(optimizer, changes)
    assert optimizer.state[parameters["bias"]]["exp_avg"].shape == (8,)


# ---- going back


@pytest.mark.parametrize("unknown", [False, True], ids=["carried", "reset"])
def test_the_very_tensors_come_back(unknown):
    parameters = make()
    optimizer = torch.optim.Adam(parameters.values())
    step(optimizer, parameters, gradients(1))
    if unknown:
        optimizer.state[parameters["weight"]]["unknown"] = object()
    before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    snapshot = StateSnapshot(optimizer)

    assert slice_optimizer_state(optimizer, prune(parameters)) == (("weight",) if unknown else ())
    snapshot.restore()

    assert optimizer.state.keys() == before.keys()
    for parameter, state in before.items():
        assert optimizer.state[parameter].keys() == state.keys()
        assert all(optimizer.state[parameter][key] is value for key, value in state.items())


def test_lbfgs_comes_back_with_its_history():
    layer = nn.Linear(4, 6)
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, max_iter=3)
    optimizer.step(lambda: _backward(layer))
    first = next(iter(layer.parameters()))
    before, numel = dict(optimizer.state[first]), optimizer._numel_cache
    snapshot = StateSnapshot(optimizer)
    weight = layer.weight.data
    layer.weight.grad, layer.weight.data = None, weight[:3]

    change = ParameterChange("weight", (6, 4), (3, 4), {0: torch.arange(3)})
    assert slice_optimizer_state(optimizer, {layer.weight: change}) == ("weight",)
    layer.weight.grad, layer.weight.data = None, weight
    snapshot.restore()

    assert optimizer._numel_cache == numel == 30
    assert optimizer.state[first].keys() == before.keys()
    assert all(optimizer.state[first][key] is value for key, value in before.items())
    optimizer.step(lambda: _backward(layer))


def _backward(layer):
    layer.zero_grad()
    loss = layer(torch.ones(2, 4)).square().mean()
    loss.backward()
    return loss
