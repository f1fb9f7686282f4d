"""Write ``docs/networks.md``: the groups found in every network of the zoo, and whether the oracle confirms them.

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

The groups of channels that are found in the networks of the test suite (`tests/zoo/`). All are small and have random
weights. `python docs/make_networks.py` wrote this page with torch {torch}, transformers {transformers} and
Python {python}.

- **groups**: the number of groups; **classes**: the number of units in them that can be removed one by one
  ([glossary](glossary.md)).
- **reach**: the fraction of the parameters that lie in a row or column of some group that may shrink by default, and
  with `include_residual=True`, which adds the streams of residual networks and the channels under norms. What only the
  self-check completes, by numbers that the network keeps and by groups that have to lose as many, does not count here:
  with it, `prune` narrows SegFormer, for example, throughout.
- **checked**: the result of removing 30% of the classes of a group. At most six groups of a network are tried one by
  one, and then all groups together. *Right* means: the network computes what it computes with the columns of the
  consumers set to zero and with every mean, variance and norm over these channels taken over the kept ones, to 1e-9
  in double precision on two inputs; the removed channels influence nothing else; and a backward pass runs. *Not
  possible* means: the network raises an error, because its code contains the width as a number. *Width* means: it
  computes something else, because its code divides by the width. Before pruning, every group is tried on a copy; this
  finds exactly these groups, and completes them or leaves them whole.
- **not pruned**: the number of layers without a channel that can be removed, with the two most frequent reasons.

{summary}

| network | groups | classes | reach by default | with `include_residual` | checked | not pruned |
| --- | --- | --- | --- | --- | --- | --- |
"""


# What the page calls a verdict of the oracle; other kinds keep their names.
NAMES = {"exception": "not possible", "wrong output": "width"}


def row(record: Record) -> str:
    """One line of the table."""
    kinds = Counter(verdict.kind for verdict in record.verdicts)
    checked = ", ".join(f"{count} {NAMES.get(kind, kind)}" for kind, count in kinds.items())
    reasons = Counter(record.refused.values()).most_common(2)
    refused = "; ".join(f"{count}: {reason}" for reason, count in reasons).replace("|", "/")
    default, whole = (count / max(record.parameters, 1) for count in (record.by_default, record.reachable))
    sizes = f"{record.groups} | {record.classes} | {default:.0%} | {whole:.0%}"
    return f"| {record.name} | {sizes} | {checked} | {refused} |"


def main() -> None:
    """Analyse and check all networks of the zoo, and write the page."""
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    records = [survey(entry) for entry in ZOO.values()]
    kinds = Counter(verdict.kind for record in records for verdict in record.verdicts)
    found = sum(record.groups > 0 for record in records)
    summary = (
        f"{len(records)} networks, {found} with at least one group, {sum(record.groups for record in records)} groups. "
        f"Results: " + ", ".join(f"{count} {NAMES.get(kind, kind)}" for kind, count in kinds.most_common()) + "."
    )
    versions = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    head = HEAD.format(summary=summary, python=platform.python_version(), **versions)
    (HERE / "networks.md").write_text(head + "\n".join(map(row, records)) + "\n")


if __name__ == "__main__":
    main()
