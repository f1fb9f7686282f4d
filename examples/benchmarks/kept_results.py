"""Results of long benchmarks in files of JSON lines, so that a run goes on where the last one ended.

Processes that share the work either append to one file, or each to a file of its own and a last one reads all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """What was run: two runs that are equal need not both be made.

    Attributes:
        network: The network, with its data and how it was trained.
        method: What chose the channels.
        ratio: The fraction of the multiply-accumulates to remove.
        budget: Epochs of tuning.
        seed: The seed of the network and of the order of the images.
    """

    network: str
    method: str
    ratio: float
    budget: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        accuracy: Test accuracy in percent.
        parameters: Parameters of the pruned network.
        macs: Its multiply-accumulates for one image.
        seconds: The time that pruning and tuning took together.
    """

    accuracy: float
    parameters: int
    macs: int
    seconds: float


class Results(dict[Run, Outcome]):
    """All results that are known.

    Args:
        paths: Files of results, which need not exist; new ones are appended to the first. Without files they are only
            in memory.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.path = paths[0] if paths else None
        for path in paths:
            for line in path.read_text().splitlines() if path.exists() else ():
                found = json.loads(line)
                self[Run(**picked(Run, found))] = Outcome(**picked(Outcome, found))

    def add(self, run: Run, outcome: Outcome) -> None:
        """Keep a result, on disk before this returns."""
        self[run] = outcome
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(run) | asdict(outcome)) + "\n")


def picked(kind: type[Run] | type[Outcome], found: dict[str, Any]) -> dict[str, Any]:
    """The part of a line that one of the classes holds."""
    return {field.name: found[field.name] for field in fields(kind)}
