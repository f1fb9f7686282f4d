"""The callback's options from LightningCLI: each of them, as docs/cli.md says, and back into a configuration."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import lightning.pytorch as pl
import pytest
import torch
import yaml
from breadth import some_of
from fitting import Classifier, make_loader, make_trainer, mlp
from jsonargparse import ArgumentParser
from pages import ROOT, Block, blocks_of
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

import lightning_coreset
from lightning_coreset import (
    AccuracyGuard,
    AccuracyMonitor,
    CoresetPruningCallback,
    LayerShape,
    Magnitude,
    PruningSchedule,
    Random,
    Reconstruction,
    Sensitivity,
    load_pruned,
)
from lightning_coreset._calls import OLD_ARGUMENTS

pytest.importorskip("sklearn", reason="the example trains on scikit-learn's digits")

PAGE = blocks_of("cli.md")
PATH = "lightning_coreset.CoresetPruningCallback"
ANNOTATIONS = get_type_hints(CoresetPruningCallback.__init__)
ALL_DEFAULTS = {name: one.default for name, one in inspect.signature(CoresetPruningCallback).parameters.items()}
DEFAULTS = {name: default for name, default in ALL_DEFAULTS.items() if name not in OLD_ARGUMENTS}


def curve(progress: float) -> float:
    """A user's schedule."""
    return progress**2


def example() -> Tensor:
    """A user's example inputs."""
    return torch.ones(2, 8)


def seconds(shape: LayerShape) -> float:
    """A user's times of layers."""
    return 1e-9 * shape.in_channels * shape.out_channels


HERE = __name__  # the import path of what this file holds

# What a user may write, and what it means; the alternatives of a Literal and bools are tried beside these.
VALUES: dict[str, list[tuple[Any, Any]]] = {
    "pruning_ratio": [(0.3, 0.3), (0, 0.0), ({"net.0": 0.3, "net.[2-4]": 0.6}, {"net.0": 0.3, "net.[2-4]": 0.6})],
    "method": [
        ({"class_path": "lightning_coreset.Sensitivity", "init_args": {"sampler": "pps"}}, Sensitivity("pps")),
        ({"class_path": "Sensitivity", "init_args": {"epsilon": 0.5}}, Sensitivity(epsilon=0.5)),
        ({"class_path": "lightning_coreset.Reconstruction", "init_args": {"rounds": 4}}, Reconstruction(rounds=4)),
        ({"class_path": "lightning_coreset.Magnitude", "init_args": {"p": 1}}, Magnitude(1)),
        ({"class_path": "lightning_coreset.Random"}, Random()),
        ("lightning_coreset.Random", Random()),
    ],
    "schedule": [
        *(({1: 0.2, 3: 0.5}, {1: 0.2, 3: 0.5}), ({"1": 0.2}, {1: 0.2}), (f"{HERE}.curve", curve)),
        ({"curve": "linear", "start": 1, "end": 0.8}, PruningSchedule("linear", start=1, end=0.8)),
        ({"interval": "step", "every": 5}, PruningSchedule(interval="step", every=5)),
        ({"curve": {"1": 0.2, "3": 0.5}}, PruningSchedule({1: 0.2, 3: 0.5})),
        ({"curve": f"{HERE}.curve", "order": "bottom_up"}, PruningSchedule(curve, order="bottom_up")),
        (
            {"class_path": "lightning_coreset.PruningSchedule", "init_args": {"curve": "cosine"}},
            PruningSchedule("cosine"),
        ),
    ],
    "start": [(0, 0), (2, 2), (0.0, 0.0), (0.25, 0.25)],
    "end": [(4, 4), (1, 1), (1.0, 1.0), (0.8, 0.8)],
    "every": [(2, 2)],
    "ignore": [(["net.0", "stem*"], ["net.0", "stem*"]), ([], [])],
    "only": [(["net.*"], ["net.*"])],
    "never_run": [(["net.4"], ["net.4"])],
    "round_to": [(8, 8)],
    "min_channels": [(4, 4)],
    "max_layer_ratio": [(0.9, 0.9)],
    "example_inputs": [
        ({"class_path": f"{HERE}.example"}, example()),
        (f"{HERE}.example", example()),
    ],
    "metric": [
        (
            {"class_path": "torchmetrics.classification.MulticlassF1Score", "init_args": {"num_classes": 3}},
            MulticlassF1Score(3),
        )
    ],
    "accuracy": [
        ({"monitor": "val_acc", "eval_batches": 2}, AccuracyMonitor(monitor="val_acc", eval_batches=2)),
        (
            {
                "metric": {
                    "class_path": "torchmetrics.classification.MulticlassF1Score",
                    "init_args": {"num_classes": 3},
                }
            },
            AccuracyMonitor(metric=MulticlassF1Score(3)),
        ),
        (
            {"class_path": "lightning_coreset.AccuracyMonitor", "init_args": {"monitor_mode": "max"}},
            AccuracyMonitor(monitor_mode="max"),
        ),
    ],
    "guard": [
        ({"max_drop": 0.02, "on_failure": "halve"}, AccuracyGuard(0.02, on_failure="halve")),
        ({"class_path": "lightning_coreset.AccuracyGuard", "init_args": {"max_drop": 0.1}}, AccuracyGuard(0.1)),
    ],
    "monitor": [("val_acc", "val_acc")],
    "eval_batches": [(0, 0)],
    "max_drop": [(0.02, 0.02)],
    "recover_epochs": [(3, 3), (1.5, 1.5)],
    "recalibrate_batches": [(4, 4)],
    "input_radius": [(2.5, 2.5)],
    "latency": [(f"{HERE}.seconds", seconds)],
    "seed": [(7, 7)],
}
# What has to be said as well, or the callback refuses a value of the option.
BESIDE: dict[str, dict[str, Any]] = {
    "allocation": {"method": "magnitude"},
    "monitor_mode": {"monitor": "val_loss"},
    "input_radius": {"certify": True},
    "latency": {"unit": "latency"},
    **{option: {"max_drop": 0.02} for option in ("recover_epochs", "on_failure")},
}


def values_of(option: str) -> list[tuple[Any, Any]]:
    """Pairs of what is written and what it means."""
    annotation = ANNOTATIONS[option]
    kinds = [annotation, *get_args(annotation)]
    literals = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    bools = [True, False] if bool in kinds else []
    none = [None] if NoneType in kinds else []
    return [*((value, value) for value in (*literals, *bools, *none)), *VALUES.get(option, [])]


def cases(*, fast: bool) -> list[Any]:
    """Every value of every option for ``parametrize``; slow, unless those that have a form of their own are to be fast.

    Plain values are fast in :func:`test_options_together`.
    """
    return [
        pytest.param(
            *(option, written, meant),
            id=f"{option}={written}",
            marks=[] if fast and isinstance(written, dict | list) else pytest.mark.slow,
        )
        for option in DEFAULTS
        for written, meant in values_of(option)
    ]


def together() -> list[dict[str, tuple[Any, Any]]]:
    """For every option a value that is not its default, in as few sets as the callback accepts."""
    sets: list[dict[str, tuple[Any, Any]]] = []
    for option, default in DEFAULTS.items():
        pair = next(pair for pair in values_of(option) if pair[1] != default)
        beside = {name: (value, value) for name, value in BESIDE.get(option, {}).items()}
        for known in sets:
            if _is_accepted({**known, option: pair, **beside}):
                known |= {option: pair, **beside}
                break
        else:
            sets.append({option: pair, **beside})
    return sets


def _is_accepted(pairs: dict[str, tuple[Any, Any]]) -> bool:
    try:
        CoresetPruningCallback(**{name: meant for name, (_, meant) in pairs.items()})
    except Exception:
        return False
    return True


# ---- what a callback is made with


@pytest.fixture(autouse=True)
def lightning_calls_what_jsonargparse_deprecates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning 2.6 does, with jsonargparse 4.49; so do these tests, to run with older ones."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[CoresetPruningCallback], dict[str, Any]]:
    """What a callback was made with, all options."""
    make = CoresetPruningCallback.__init__

    @functools.wraps(make)
    def record(self: Any, *args: Any, **options: Any) -> None:
        bound = inspect.signature(make).bind(self, *args, **options)
        bound.apply_defaults()
        self.given = {name: value for name, value in bound.arguments.items() if name != "self"}
        make(self, *args, **options)

    monkeypatch.setattr(CoresetPruningCallback, "__init__", record)
    return lambda callback: plain(callback.given)  # type: ignore[attr-defined]


def plain(value: Any) -> Any:
    """A value that can be compared: of another type is different, but a list equals a tuple."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return type(value), {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return "tensor", value.tolist()
    if isinstance(value, Metric):
        return type(value), value.num_classes
    return type(value), value


def new_parser() -> ArgumentParser:
    """A parser of callbacks as LightningCLI has it, without the hundred other options of a Trainer."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--callbacks", type=get_type_hints(pl.Trainer.__init__)["callbacks"])
    return parser


def make_callback(*arguments: str) -> tuple[CoresetPruningCallback, str]:
    """The callback that these arguments make, and the configuration that is printed for them."""
    configured = new_parser().parse_args(list(arguments))
    made = new_parser().instantiate_classes(configured).callbacks
    (callback,) = made if isinstance(made, list) else [made]
    return callback, new_parser().dump(configured)


# ---- every option


def test_every_option_is_tried() -> None:
    untried = [option for option in DEFAULTS if not any(meant != DEFAULTS[option] for _, meant in values_of(option))]
    assert untried == [], "give these an entry in VALUES"


@pytest.mark.parametrize("pairs", together(), ids=lambda pairs: f"{next(iter(pairs))} and others")
def test_options_together(pairs: dict[str, tuple[Any, Any]], given: Any, tmp_path: Path) -> None:
    written, meant = ({name: pair[number] for name, pair in pairs.items()} for number in (0, 1))
    expected = given(CoresetPruningCallback(**meant))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"callbacks": [{"class_path": PATH, "init_args": written}]}), encoding="utf-8")

    from_file, printed = make_callback(f"--config={file}")
    arguments = [f"--callbacks.{name}={as_argument(value)}" for name, value in written.items()]
    from_command_line, _ = make_callback(f"--callbacks+={PATH}", *arguments)

    assert given(from_file) == given(from_command_line) == expected
    file.write_text(printed, encoding="utf-8")
    assert given(make_callback(f"--config={file}")[0]) == expected


@pytest.mark.parametrize(("option", "written", "meant"), cases(fast=True))
@pytest.mark.filterwarnings("ignore:`end=1` is an int")
def test_an_option_from_a_file_comes_as_in_python_and_goes_back(
    option: str, written: Any, meant: Any, given: Any, tmp_path: Path
) -> None:
    options = BESIDE.get(option, {}) | {option: written}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"callbacks": [{"class_path": PATH, "init_args": options}]}), encoding="utf-8")

    callback, printed = make_callback(f"--config={file}")

    assert given(callback) == given(CoresetPruningCallback(**(options | {option: meant})))
    file.write_text(printed, encoding="utf-8")
    again, printed_again = make_callback(f"--config={file}")
    assert given(again) == given(callback)
    assert printed_again == printed


@pytest.mark.parametrize(("option", "written", "meant"), cases(fast=False))
@pytest.mark.filterwarnings("ignore:`end=1` is an int")
def test_an_option_from_the_command_line_comes_as_in_python(option: str, written: Any, meant: Any, given: Any) -> None:
    options = BESIDE.get(option, {}) | {option: written}
    arguments = [f"--callbacks.{name}={as_argument(value)}" for name, value in options.items()]

    callback, _ = make_callback(f"--callbacks+={PATH}", *arguments)

    assert given(callback) == given(CoresetPruningCallback(**(options | {option: meant})))


def as_argument(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")


@pytest.mark.parametrize("name", [PATH, f"{HERE}.Hands"])
def test_old_names_are_taken(name: str, given: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    options = {"max_ratio": 0.7, "check": False}
    file.write_text(yaml.safe_dump({"callbacks": [{"class_path": name, "init_args": options}]}), encoding="utf-8")
    for arguments in (
        [f"--config={file}"],
        [f"--callbacks+={name}", "--callbacks.max_ratio=0.7", "--callbacks.check=false"],
    ):
        with pytest.warns(DeprecationWarning, match="was renamed") as warned:
            callback, printed = make_callback(*arguments)
        assert {str(one.message) for one in warned} == {
            "The argument max_ratio was renamed: use max_layer_ratio=0.7.",
            "The argument check was renamed: use self_check=False.",
        }
        settled = callback._options.arguments
        assert (settled["max_layer_ratio"], settled["self_check"]) == (0.7, False)
        assert not settled.keys() & OLD_ARGUMENTS.keys()
    file.write_text(printed, encoding="utf-8")
    with pytest.warns(DeprecationWarning, match="was renamed"):
        assert make_callback(f"--config={file}")[0].request.max_layer_ratio == 0.7


class Hands(CoresetPruningCallback):
    """A subclass that hands its options on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guard.max_drop=-1"], "Expected `max_drop` to be a non-negative number"),
        (["guard.max_drop=0.1", "guard.recover=3"], "'recover' is not accepted"),
        (["guard.max_drop=0.1", "max_drop=0.2"], "Expected either guard=.* or max_drop but got both"),
        (["schedule={curve: linear, start: 0.9, end: 0.2}"], "Expected `start` not to come after `end`"),
        (["schedule={curve: linear}", "every=2"], r"either schedule=PruningSchedule\(\.\.\.\) or every but got both"),
        (["accuracy={monitor: val_acc}", "eval_batches=2"], "Expected either accuracy=.* or eval_batches but got both"),
        (["pruning_ratio=1.5"], r"Expected pruning_ratio to be a number in \[0, 1\)"),
        (["schedule=square"], "one_shot.*linear.*cubic.*cosine"),
        (["schedule={1: 0.5, 2: 0.2}"], "Expected `schedule` never to decrease"),
        (["unit=flops"], "params.*macs.*channels"),
        (["method=lightning_coreset.Magnitude", "method.p=3"], "1 or 2"),
        (["pruningratio=0.5"], "'pruningratio' is not accepted"),
        (["ignore=net.0"], "ignore"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(Exception, match=f"(?s){message}"):  # jsonargparse has its own, and passes on our ValueErrors
        make_callback(f"--callbacks+={PATH}", *(f"--callbacks.{argument}" for argument in arguments))


# ---- the page, and the example


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, and of the file that the page adds to it, to work in."""
    for name in ("cli.py", "cli.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    (rules,) = (block for block in PAGE if block.code.startswith("# rules.py"))
    (tmp_path / "rules.py").write_text(rules.code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # else Lightning warns of a seed of its own choice
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("cli", "rules"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell would do with ``python cli.py ...``, in this process."""
    python, script, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (python, script) == ("python", "cli.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


def commands(section: str) -> list[str]:
    return [block.code for block in PAGE if block.language == "bash" and block.section == section]


def fragments() -> list[Any]:
    """Pairs of what stands under ``init_args`` and the call that makes the same."""
    boxes = [block for block in PAGE if block.language == "yaml" or block.code.startswith("CoresetPruningCallback(")]
    pairs = zip(boxes[1::2], boxes[2::2], strict=True)  # the first is the whole configuration
    return [pytest.param(fragment, call, id=call.code.strip()) for fragment, call in pairs]


def test_the_page_shows_the_configuration_of_the_example() -> None:
    assert PAGE[0] == Block("A configuration", "yaml", (ROOT / "examples" / "cli.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("section", some_of(["A configuration", "The command line alone", "Rules"], "Rules"))
def test_commands_of_the_page_prune(
    section: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = commands(section)
    assert ran
    for command in ran:
        run_command(command, monkeypatch)
    out, err = capfd.readouterr()
    ratios = {"A configuration": ["50.00%", "30.00%"], "The command line alone": ["30.00%"], "Rules": ["30.00%"]}
    for ratio in ratios[section]:
        assert f"{ratio} requested" in " ".join((out + err).split())
    assert len(list(folder.glob("lightning_logs/*/config.yaml"))) == len(ran)


def test_the_help_has_every_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_help, show_config = commands("All options")
    with pytest.raises(SystemExit, match="0"):
        run_command(show_help, monkeypatch)
    out = capsys.readouterr().out
    for option in DEFAULTS:
        assert f"--trainer.callbacks.{option}" in out
    assert "is gone at the end" in " ".join(out.split())  # from the docstring

    with pytest.raises(SystemExit, match="0"):
        run_command(show_config, monkeypatch)
    printed = capsys.readouterr().out
    (callback,) = yaml.safe_load(printed)["trainer"]["callbacks"]
    assert callback["init_args"].keys() == ALL_DEFAULTS.keys()
    (folder / "printed.yaml").write_text(printed, encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        run_command("python cli.py fit --config printed.yaml --print_config", monkeypatch)
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("fragment", "call"), fragments())
def test_what_the_page_writes_under_init_args_is_its_python(
    fragment: Block, call: Block, given: Any, tmp_path: Path
) -> None:
    options = yaml.safe_load(fragment.code)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"callbacks": [{"class_path": PATH, "init_args": options}]}), encoding="utf-8")
    import cli  # type: ignore[import-not-found]  # from the folder

    names = vars(lightning_coreset) | {"cli": cli, "MulticlassF1Score": MulticlassF1Score}
    assert given(make_callback(f"--config={file}")[0]) == given(eval(call.code, names))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # validation has a version_* of its own
def test_checkpoints_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(commands("A configuration")[0], monkeypatch)
    for command in commands("Checkpoints"):
        run_command(command, monkeypatch)
    names: dict[str, Any] = {}
    (code,) = (block.code for block in PAGE if block.section == "Checkpoints" and block.language == "python")
    exec(code, names)
    assert 0 < sum(parameter.numel() for parameter in names["model"].parameters()) < 0.51 * 50610


# ---- among hyperparameters


class Keeper(Classifier):
    """A module that takes its callback as an argument."""

    def __init__(self, pruning: CoresetPruningCallback, width: int = 32, keep: bool = False) -> None:
        super().__init__(mlp(8, width, 24, 3))
        self.save_hyperparameters(ignore=[] if keep else ["pruning"])
        self.pruning = pruning

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.pruning]


class CopiesInTraining(pl.Callback):
    """Copies and pickles the callback wherever training is."""

    def __init__(self, pruning: CoresetPruningCallback) -> None:
        self.pruning = pruning
        self.ratios: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        for one in (copy.deepcopy(self.pruning), pickle.loads(pickle.dumps(self.pruning))):
            self.ratios.append(one.plans[-1].reached if one.plans else 0.0)

    on_train_batch_start = on_train_start = on_fit_start = on_train_batch_end


def test_the_page_builds_a_module_that_keeps_its_callback() -> None:
    names: dict[str, Any] = {}
    (code,) = (block.code for block in PAGE if block.section == "The callback as a hyperparameter")
    exec(code, names)
    assert names["model"].hparams == {"width": 64}
    assert names["model"].configure_callbacks() == [names["model"].pruning]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.slow
def test_a_callback_may_be_an_argument_of_the_module(keep: bool, tmp_path: Path) -> None:
    module = Keeper(CoresetPruningCallback(0.5, schedule=curve, verbose=False), keep=keep)
    copies = CopiesInTraining(module.pruning)
    trainer = make_trainer(copies, max_epochs=4, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(module, make_loader(8))
    assert copies.ratios[-1] == module.pruning.plans[-1].reached > 0.4
    path = trainer.checkpoint_callback.best_model_path
    loaded = load_pruned(Keeper, path, weights_only=not keep, **({} if keep else {"pruning": module.pruning}))

    x = torch.randn(4, 8)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert loaded.hparams.keys() == ({"pruning", "width", "keep"} if keep else {"width", "keep"})
