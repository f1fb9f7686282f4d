"""docs/export.md: pruned models are exported like any other, and loaded where this package is not installed."""

from __future__ import annotations

import copy
import io
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from fitting import Classifier, convnet, make_loader, make_trainer
from pages import Block, blocks_of
from torch import Tensor, nn
from zoo import ZOO

from lightning_coreset import CoresetPruningCallback, make_plain, make_resizable, prune
from lightning_coreset.checkpoint import is_resizable

PAGE = blocks_of("export.md")
# Recipes that hold for any model; the others are about the model that the page begins with.
GENERAL = [block for block in PAGE if block.section not in ("The model", "Weights alone")]

# It gets recipes and an input from the test; none may import this package, nor does anything that they load.
ELSEWHERE = """
import importlib.abc, sys, torch

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning_coreset":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
work = torch.load("work.pt")
outputs = []
for recipe in work["recipes"]:
    names = {"x": work["x"]}
    exec(recipe, names)
    outputs.append(names["y"].detach())
assert "lightning_coreset" not in sys.modules
torch.save(outputs, "outputs.pt")
"""

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")


def is_elsewhere(block: Block) -> bool:
    return block.code.startswith("# Elsewhere")


def run_elsewhere(recipes: Iterable[Block], x: Tensor, folder: Path) -> list[Tensor]:
    """The ``y`` of each recipe, from a process that cannot import this package."""
    torch.save({"recipes": [recipe.code for recipe in recipes], "x": x}, folder / "work.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(Path(__file__).parent)))}
    processes.finish(processes.start("-c", ELSEWHERE, cwd=folder, env=environment))
    return torch.load(folder / "outputs.pt")


def assert_close(y: Tensor, expected: Tensor, block: Block) -> None:
    """With eight bits an error of some percent of the largest output is expected, elsewhere that of rounding."""
    error = ((y - expected).abs().max() / expected.abs().max()).item()
    assert error < (0.05 if block.section == "int8" else 1e-5), f"{block.section}: {error:.1e}"


def run_page(blocks: list[Block], folder: Path, names: dict[str, Any]) -> None:
    """Run blocks in order, those for another process at the end, and compare outputs with the pruned model's."""
    for block in blocks:
        if block.code.startswith("# network.py"):
            (folder / "network.py").write_text(block.code, encoding="utf-8")
        elif not is_elsewhere(block):
            exec(compile(block.code, f"docs/export.md: {block.section}", "exec"), names)
            if "y" in names:
                assert_close(names.pop("y"), names["model"](names["x"]), block)
    recipes = [block for block in blocks if is_elsewhere(block)]
    assert len(recipes) > 4
    model, x = names["model"], names["x"]
    fewer = x[: len(x) // 2]  # no recipe fixes the size of the batch
    for block, y in zip(recipes, run_elsewhere(recipes, fewer, folder), strict=True):
        assert_close(y, model(fewer), block)


def pruned_in_fit() -> tuple[Classifier, Tensor]:
    module, callback = Classifier(convnet()), CoresetPruningCallback(verbose=False)
    make_trainer(callback, max_epochs=2).fit(module, make_loader(1, 6, 6))
    assert callback.plans
    return module.eval(), torch.randn(4, 1, 6, 6)


def pruned_by_hand(name: str) -> tuple[nn.Module, Tensor]:
    model, x = ZOO[name].build(), torch.randn(4, 3, 16, 16)
    prune(model, x, 0.3)
    return model.eval(), x


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, from which ``network.py`` is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "network", raising=False)
    return tmp_path


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as ``torch.compile`` does, and leave out the C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_the_page_runs_from_top_to_bottom(folder: Path) -> None:
    run_page(PAGE, folder, {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(pruned_by_hand, "classic/vgg_bn"), id="convolutions with BatchNorm"),
        pytest.param(partial(pruned_by_hand, "classic/mobilenet_v2"), id="depthwise convolutions"),
        pytest.param(partial(pruned_by_hand, "classic/Vit"), id="transformer with fewer heads"),
        pytest.param(pruned_in_fit, id="LightningModule pruned in fit"),
    ],
)
def test_recipes_hold_for_other_models(make: Any, folder: Path) -> None:
    model, x = make()
    run_page(GENERAL, folder, {"__name__": "page", "model": model, "x": x, "torch": torch})


def test_the_transformer_has_fewer_heads() -> None:
    model, _ = pruned_by_hand("classic/Vit")
    assert model.blocks[0].attention.num_heads == 2 < ZOO["classic/Vit"].build().blocks[0].attention.num_heads


@pytest.mark.slow
def test_inductor_compiles_a_pruned_model() -> None:
    model, x = pruned_by_hand("classic/mobilenet_v2")
    torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-5)


# ---- models as they are, and plain ones


@pytest.mark.slow
def test_lightnings_own_export_to_onnx(folder: Path) -> None:
    module, x = pruned_in_fit()
    (recipe,) = (block for block in PAGE if block.section == "ONNX" and is_elsewhere(block))

    module.to_onnx("model.onnx", x, dynamo=True, input_names=["x"], verbose=False)

    names = {"x": x}
    exec(recipe.code, names)
    torch.testing.assert_close(names["y"], module(x), rtol=1e-4, atol=1e-5)


def pickled(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


@pytest.mark.slow
def test_without_make_plain_a_pickled_model_needs_the_package(folder: Path) -> None:
    model, x = pruned_by_hand("classic/vgg_bn")
    torch.save(model, "model.pt")
    recipe = Block("", "python", "import torch; y = torch.load('model.pt', weights_only=False)(x)")
    with pytest.raises(AssertionError, match="No module named 'lightning_coreset"):
        run_elsewhere([recipe], x, folder)


def test_the_network_inside_a_lightning_module_says_how_it_was_pruned_unless_it_is_made_plain() -> None:
    module, _ = pruned_in_fit()
    assert b"lightning_coreset" in pickled(module)
    assert b"lightning_coreset" in pickled(module.net)
    assert b"lightning_coreset" not in pickled(make_plain(copy.deepcopy(module.net)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("part", ["", "net"], ids=["root", "submodule"])
def test_make_plain_takes_everything_off(part: str, compiled: bool) -> None:
    model = nn.Sequential()
    model.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    kept = model.register_state_dict_post_hook(a_hook_of_the_user)
    x = torch.randn(4, 6)
    prune(make_resizable(model.get_submodule(part)), x, 0.5)
    before = copy.deepcopy(model.state_dict())
    outer = torch.compile(model, backend="eager") if compiled else model
    assert b"lightning_coreset" in pickled(model)

    assert make_plain(outer) is outer

    assert b"lightning_coreset" not in pickled(model)
    assert not is_resizable(model.get_submodule(part))
    assert list(model._state_dict_hooks.values()) == [a_hook_of_the_user]
    assert "lightning_coreset" not in model.state_dict()._metadata[part]
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    model.load_state_dict(before)  # of its own sizes, as any model
    kept.remove()


def a_hook_of_the_user(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """A state-dict hook that this package did not register."""


def test_a_plain_model_can_be_made_resizable_and_pruned_again() -> None:
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6)
    prune(model, x, 0.5)
    twin = copy.deepcopy(make_plain(model))

    plan = prune(make_resizable(model), x, 0.5)

    assert plan.params_original == sum(parameter.numel() for parameter in twin.parameters())
    make_resizable(twin).load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
