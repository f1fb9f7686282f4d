"""Private names of torch and Lightning: all in ``_compat.py``, and no wrong result where one is missing."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import processes
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.utils.checkpoint import checkpoint

from lightning_coreset import _compat, plan_pruning

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_coreset"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_compat.py")


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


OBJECTS = (nn.Conv2d(1, 1, 1), pl.LightningModule(), pl.Callback(), DDPStrategy(), torch.empty(0))
FOREIGN = {name for each in OBJECTS for name in (*dir(each), *vars(type(each))) if private(name)}
PUBLIC = {"_fields", "_replace", "_asdict", "_getframe"}  # of Python


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a file defines: methods, functions, classes, attributes and fields."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private names of other packages that a file uses: imported, read as attributes, or asked for by text."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if not names[0].startswith("lightning_coreset"):
                yield from (name for name in names if any(map(private, name.split("."))))
        elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in PUBLIC:
            holder = ast.unparse(node.value)
            operators = holder.split(".")[-1] in ("aten", "_aten")  # torch.ops.aten._softmax is called so
            itself = holder in ("self", "cls") and node.attr not in ("_generate_state_key", "_trainer")
            if not itself and not operators and (node.attr in FOREIGN or node.attr not in own):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str) and private(text) and text not in PUBLIC)


def test_no_other_file_uses_a_private_name() -> None:
    for path in FILES:
        assert list(private_names(ast.parse(path.read_text(encoding="utf-8")))) == [], path


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from torch.utils._pytree import tree_map", ["torch.utils._pytree"]),
        ("from torch.nn.modules.loss import _Loss", ["_Loss"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("self._parameters = 1\nmodule._parameters", ["module._parameters"]),
        ("torch._C._storage_Use_Count(1)", ["torch._C._storage_Use_Count", "torch._C"]),
        ('getattr(callback, "_average_model", None)', ["_average_model"]),
        ("self._generate_state_key()", ["self._generate_state_key"]),
        ("self._own = 1\nself._own\nother._own", []),
        ("torch.ops.aten._softmax", []),
    ],
)
def test_private_names_are_found(code: str, found: list[str]) -> None:
    assert list(private_names(ast.parse(code))) == found


# Names that can be taken away: torch and Lightning themselves go on without them.
TAKEN_AWAY = """
    torch._C._storage_Use_Count torch._C._current_graph_task_id torch._dynamo.OptimizedModule
    torch.utils._python_dispatch._disable_current_modes torch.utils._python_dispatch.TorchDispatchMode
    torch.utils._pytree.tree_map torch.utils._pytree.tree_leaves
    torch.nn.modules.conv._ConvNd torch.nn.modules.conv._ConvTransposeNd torch.nn.modules.batchnorm._BatchNorm
    torch.nn.modules.batchnorm._NormBase torch.nn.modules.dropout._DropoutNd
    torch.nn.modules.instancenorm._InstanceNorm torch.nn.modules.loss._Loss
    lightning.pytorch.strategies.launchers._MultiProcessingLauncher
    lightning.fabric.utilities.logger._sanitize_params
""".split()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = processes.start(ROOT / "tests" / "compat_script.py", *TAKEN_AWAY, env=environment)
    (output,) = processes.finish(process)
    return json.JSONDecoder().raw_decode(output, output.index('{"": '))[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the fixture is part of the first test
@pytest.mark.parametrize("missing", TAKEN_AWAY)
def test_without_a_private_name_the_result_is_the_same_or_an_error_says_so(
    outcomes: dict[str, Any], missing: str
) -> None:
    complete, found = outcomes[""], outcomes[missing]

    if missing.endswith("TorchDispatchMode"):
        said = f"RuntimeError: Expected torch to have {missing} but torch {torch.__version__} does not"
        assert all(error.startswith(said) for error in found.values())
    else:
        assert found == complete


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_complete_outcome_is_that_of_pruning(outcomes: dict[str, Any]) -> None:
    plain, training = outcomes[""]["plain_pruning"], outcomes[""]["training"]

    assert plain["groups"]["features.0"] != [16, 16]
    assert training["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert training["logged"] == [True, True, True]
    assert len(training["accuracies"]) > 0


SEEN: list[torch.Tensor] = []  # what a module holds itself is put back


def test_a_tensor_that_outlives_the_run_has_its_values_where_torch_cannot_count_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Network(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            SEEN[:] = [self[0](x)]  # a product that is large enough to be put off
            return self[2](self[1](SEEN[0]))

    torch.manual_seed(0)
    model, x = Network(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)), torch.randn(16, 256)
    expected = plan_pruning(model, x, 0.5, method="magnitude", self_check=False)
    monkeypatch.delattr(torch._C, "_storage_Use_Count")

    plan = plan_pruning(model, x, 0.5, method="magnitude", self_check=False)

    assert plan.groups == expected.groups
    assert torch.equal(SEEN.pop(), model[0](x))


# ---- names of objects, which cannot be taken away from a class: stand-ins that never had them


class Without:
    """An object seen without some of its attributes."""

    def __init__(self, inner: Any, *names: str) -> None:
        self.__dict__.update(inner=inner, names=names)

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_communication_state_is_found_under_any_name() -> None:
    state = PowerSGDState(None)
    strategy = DDPStrategy(ddp_comm_state=state)
    assert _compat.communication_state(strategy, PowerSGDState) is state
    assert _compat.communication_state(strategy, int) is None
    strategy.renamed = strategy.__dict__.pop("_ddp_comm_state")
    assert _compat.communication_state(strategy, PowerSGDState) is state


def test_static_graph_is_reduced_first_only_where_the_strategy_says_so() -> None:
    for static in (False, True):
        strategy = DDPStrategy(static_graph=static)
        vars(strategy).pop("_pl_static_graph_delay_done", None)
        assert _compat.loses_first_static_iteration(strategy) == static
        strategy._pl_static_graph_delay_done = True
        assert not _compat.loses_first_static_iteration(strategy)
        _compat.repeat_static_graph_delay(strategy)
        assert strategy._pl_static_graph_delay_done is False


def test_averaged_model_of_lightning_is_found_under_any_name() -> None:
    callback = StochasticWeightAveraging(0.1)
    assert _compat.averaged_model(callback) is None
    callback._average_model = model = pl.LightningModule()
    assert _compat.averaged_model(callback) is model
    callback.renamed = callback.__dict__.pop("_average_model")
    assert _compat.averaged_model(callback) is model
    assert _compat.averaged_model(pl.Callback()) is None


def test_epochs_of_weight_averaging_follow_from_its_last_epoch() -> None:
    trainer = SimpleNamespace(max_epochs=9)
    assert _compat.epochs_before_batch_norm_update(trainer, SimpleNamespace(_max_epochs=7)) == 7
    assert _compat.epochs_before_batch_norm_update(trainer, SimpleNamespace(swa_end=6)) == 7
    assert _compat.epochs_before_batch_norm_update(trainer, SimpleNamespace()) == 9


def test_steps_are_counted_without_lightnings_count() -> None:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    assert _compat.batches_that_stepped(SimpleNamespace(fit_loop=loop, global_step=6, optimizers=[1, 2])) == 3


def test_state_key_is_lightnings() -> None:
    callback = pl.Callback()
    names = {"unit": "params", "only": ["a"]}
    assert _compat.state_key(callback, **names) == callback._generate_state_key(**names)
    assert _compat.state_key(Without(callback), **names).partition("{")[2] == "'unit': 'params', 'only': ['a']}"


def test_trainer_is_found_by_the_public_property() -> None:
    module = pl.LightningModule()
    assert _compat.trainer_of(module) is _compat.trainer_of(Without(module, "_trainer")) is None
    module.trainer = trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert _compat.trainer_of(module) is _compat.trainer_of(Without(module, "_trainer")) is trainer


def test_names_of_non_persistent_buffers_follow_from_the_state_dict() -> None:
    module = nn.Module()
    module.register_buffer("a", torch.ones(1))
    module.register_buffer("b", torch.ones(1), persistent=False)
    assert _compat.non_persistent_buffers(module) == {"b"}
    vars(module)["_non_persistent_buffers_set"] = None
    vars(module)["state_dict"] = lambda: {"a": module.a}
    assert _compat.non_persistent_buffers(module) == {"b"}


def test_hooks_that_cannot_be_seen_are_an_error_in_words() -> None:
    with pytest.raises(RuntimeError, match=r"torch .* does not, and lightning_coreset cannot see which hooks"):
        _compat.state_dict_hooks(Without(nn.Linear(1, 1), "_state_dict_hooks"))  # type: ignore[arg-type]


def test_schema_that_is_missing_is_an_error_in_words() -> None:
    with pytest.raises(RuntimeError, match="cannot read the arguments of operations"):
        _compat.schema_of(object())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("counted", [True, False])
def test_in_backward_also_by_the_stack(monkeypatch: pytest.MonkeyPatch, reentrant: bool, counted: bool) -> None:
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as patch:  # checkpoint itself needs the name
            if not counted:
                patch.delattr(torch._C, "_current_graph_task_id")
            seen.append(_compat.in_backward())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint(forward, x, use_reentrant=reentrant).sum().backward()

    assert seen == [False, True]


def test_summaries_are_written_without_the_writers_private_method(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard.summary import scalar

    writer = TensorBoardLogger(tmp_path, name="", version="").experiment
    _compat.add_summaries(Without(writer, "_get_file_writer"), [scalar("a", 1.0), scalar("b", 2.0)])
    writer.close()

    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == ["a", "b"]


def test_hyperparameters_read_alike_without_lightnings_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"a": 1, "b": {"c": None, "d": {"e": 0.5}}, "f": [1, 2], "g": "text", "h": True}
    expected = _compat.as_logged(params)
    assert expected == {"a": 1, "b/c": "None", "b/d/e": 0.5, "f": "[1, 2]", "g": "text", "h": True}
    monkeypatch.setattr(_compat, "_found", lambda module, name: None)
    assert _compat.as_logged(params) == expected


@pytest.mark.parametrize(
    ("machine", "supported", "expected"),
    [
        ("x86_64", (), (False, False)),
        ("AMD64", ("_is_avx512_bf16_supported",), (True, False)),
        ("x86_64", ("_is_amx_tile_supported", "_is_amx_fp16_supported"), (True, True)),
        ("arm64", (), (True, True)),  # torch does not tell
    ],
)
def test_half_precision_arithmetic_is_that_which_torch_tells(
    monkeypatch: pytest.MonkeyPatch, machine: str, supported: tuple[str, ...], expected: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(_compat.platform, "machine", lambda: machine)
    monkeypatch.setattr(_compat, "_found", lambda module, name: (lambda: True) if name in supported else None)
    assert (_compat.multiplies_in(torch.bfloat16), _compat.multiplies_in(torch.float16)) == expected
    assert _compat.multiplies_in(torch.float32)


def test_trees_read_alike_without_torchs_functions() -> None:
    class Pair(dict):
        pass

    tree = [torch.ones(1), (2, {"a": 3, "b": [4]}), torch.Size([5])]
    assert _compat._tree_leaves(tree)[1:] == [2, 3, 4, 5]
    assert _compat._tree_map(str, (1, {"a": [2]})) == ("1", {"a": ["2"]})
    assert type(_compat._tree_map(str, Pair(a=1))) is Pair


def test_tested_versions_begin_at_the_declared_floors() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, versions in _compat.TESTED.items():
        assert f'"{package}>={versions.partition(" ")[0]}' in text
