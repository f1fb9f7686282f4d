"""Counts of reliability tests, and of those that passed, from running all of them now.

- *networks*: the networks in ``tests/zoo/``, in each of which the groups of channels are found;
- *removals*: 30% of the classes of a group are removed (for at most six groups of a network, and for all groups at
  once), and the outputs are compared with those of the network whose consumers of these channels are zeroed. A removal
  only fails if the width of the group is hard-coded in the network; the next row counts those that the self-check
  finds;
- *faults*: tests that cause a failure in or before a pruning event (an exception, no memory, a signal, another process)
  and compare the state afterwards with the state before, or, if the event was complete, with its result;
- *resumes*: tests that stop a training, resume it from a checkpoint, and compare with a training that was not stopped.

    python examples/benchmarks/reliability.py

Needs a clone of the repository and what ``pip install ".[test,benchmarks]"`` installs. Takes a quarter of an hour on
one core; ``--quick`` runs a part of most tests. Prints a Markdown table. If tests did not pass, ends with an error that
names them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import torch
from reporting import markdown, setting
from torch import Generator

from lightning_coreset.structure import Example
from lightning_coreset.verification import failing_groups

ROOT = Path(__file__).parents[2]
SURVEY = "python docs/make_networks.py"  # writes the table with the details
QUICK_STRIDE = 40


@dataclass(frozen=True)
class Tests:
    """Tests of one kind.

    Attributes:
        title: What each of them tests.
        file: The file that contains them.
        names: The expression for pytest that selects them in the file.
        quick: An expression that selects a few.
    """

    title: str
    file: str
    names: str
    quick: str = ""

    def command(self, quick: bool) -> list[str]:
        """The pytest arguments that run all of them, including slow ones, in one process."""
        return ["pytest", "-n", "0", "-m", "not gpu", self.file, "-k", self.quick if quick else self.names]


TESTS = (
    Tests(
        "faults injected into an event",
        "tests/training/test_event.py",
        "failure or who_catches or out_of_memory or ctrl_c or logger_that_fails",
        "ctrl_c",
    ),
    Tests(
        "faults injected into an event on one of two processes",
        "tests/training/test_failures.py",
        "one_rank_fails or hangs",
    ),
    Tests(
        "trainings resumed, compared bit for bit",
        "tests/test_resume.py",
        "from_the or from_any or events_by_steps or ways_to_prune or twice or unpickling or killed",
    ),
    Tests("trainings on two processes resumed, or resumed by one", "tests/training/test_ddp.py", "resume"),
)


def run(tests: Tests, quick: bool) -> tuple[int, list[str]]:
    """The number of tests, and the names of those that did not pass (skipped ones included).

    Raises:
        RuntimeError: If pytest cannot run them, or finds none.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", *tests.command(quick), f"--junitxml={report}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: some failed
            raise RuntimeError(f"{tests.file} cannot be run:\n{(done.stdout + done.stderr)[-2000:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    lost = [case for case in cases if {child.tag for child in case} & {"failure", "error", "skipped"}]
    return len(cases), [f"{tests.file}::{case.get('name')}" for case in lost]


def zoo_rows(quick: bool) -> Iterable[list[str]]:
    """Rows for networks, groups and removals, and for what the self-check says if a removal was not right."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from zoo import ZOO
    from zoo.oracle import survey

    warnings.simplefilter("ignore")  # the networks' own
    entries = list(ZOO.values())[:: QUICK_STRIDE if quick else 1]
    records = [survey(entry) for entry in entries]
    verdicts = [(record.name, verdict) for record in records for verdict in record.verdicts]
    wrong = [(name, verdict.group) for name, verdict in verdicts if verdict.kind != "right"]
    caught = {name: _failing(ZOO[name]) for name, _ in wrong}
    found = sum(group in caught[name] for name, group in wrong)
    groups = sum(record.groups for record in records)
    yield [f"networks of the zoo, with {groups} groups of channels", f"{len(entries)}", f"{len(records)}", SURVEY]
    right = len(verdicts) - len(wrong)
    yield ["removals compared with zeroed consumers", f"{len(verdicts)}", f"{right}", SURVEY]
    yield ["the others: found by the self-check, and left whole", f"{len(wrong)}", f"{found}", SURVEY]


def _failing(entry: object) -> dict[str, str]:
    from zoo.oracle import build, search

    model = build(entry)
    structure = search(entry, model)
    return failing_groups(model, structure.groups, Example.of(entry.inputs(Generator().manual_seed(1))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some networks and some tests, to try the script")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = list(zoo_rows(given.quick))
    lost: list[str] = []
    for tests in TESTS:
        if given.quick and not tests.quick:
            continue
        count, others = run(tests, given.quick)
        lost += others
        shown = " ".join(f'"{word}"' if " " in word else word for word in tests.command(given.quick))
        rows.append([tests.title, f"{count}", f"{count - len(others)}", shown])
    print(setting("lightning", "transformers", "pytest"))
    print()
    print(markdown(["what", "how many", "passed", "command"], [[*row[:3], f"`{row[3]}`"] for row in rows]))
    if lost:
        sys.exit("Did not pass: " + ", ".join(lost))


if __name__ == "__main__":
    main()
