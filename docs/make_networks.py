"""Write ``docs/networks.md``: what the engine finds in every network of the zoo, and the oracle's word on it.

    python docs/make_networks.py

Needs what ``pip install ".[test]"`` installs; takes some minutes on one core.
"""

from __future__ import annotations

import platform
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from zoo import ZOO  # noqa: E402
from zoo.oracle import Record, survey  # noqa: E402

HEAD = """# Networks

What the engine finds in the networks of the test suite's zoo (`tests/zoo/`), all small and with random weights. Written
by `python docs/make_networks.py` with torch {torch} and transformers {transformers} on Python {python}.

- **groups**: sets of channels that live and die together; **classes**: single units that could be removed.
- **reachable**: the share of the parameters that lie in a row or column of some group.
- **checked**: of the groups tried (at most six of a network, and all at once), how many were *right*: without 30% of
  their classes the network computes what it computes with the consumers' columns set to zero, to 1e-6 in double
  precision on two inputs, nothing leaks, and a backward pass runs. A group that is *not possible* raises when it is
  cut, because the network's own code writes its width as a number (or divides by it, *width*); pruning tries every
  group on a copy first, finds just these and leaves them whole.
- **refused**: layers none of whose channels can go, with the commonest reasons.

{summary}

| network | groups | classes | reachable | checked | refused |
| --- | --- | --- | --- | --- | --- |
"""


def row(record: Record) -> str:
    """One line of the table."""
    kinds = Counter(verdict.kind for verdict in record.verdicts)
    names = {"exception": "not possible", "wrong output": "width"}
    checked = ", ".join(f"{count} {names.get(kind, kind)}" for kind, count in kinds.items())
    reasons = Counter(record.refused.values()).most_common(2)
    refused = "; ".join(f"{count}: {reason}" for reason, count in reasons).replace("|", "/")
    share = record.reachable / max(record.parameters, 1)
    return f"| {record.name} | {record.groups} | {record.classes} | {share:.0%} | {checked} | {refused} |"


def main() -> None:
    """Survey the zoo and write the page."""
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    records = [survey(entry) for entry in ZOO.values()]
    kinds = Counter(verdict.kind for record in records for verdict in record.verdicts)
    found = sum(record.groups > 0 for record in records)
    summary = (
        f"{len(records)} networks, {found} with at least one group, {sum(record.groups for record in records)} groups. "
        f"Verdicts: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) + "."
    )
    versions = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    head = HEAD.format(summary=summary, python=platform.python_version(), **versions)
    (HERE / "networks.md").write_text(head + "\n".join(map(row, records)) + "\n")


if __name__ == "__main__":
    main()
