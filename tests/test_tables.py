"""How things show themselves: names that are merged, tables, `repr`, and HTML for notebooks."""

import html.parser
import pickle

import pytest
import torch
from torch import nn

from lightning_coreset import CoresetPruningCallback, plan_pruning, sensitivity_scan
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Request, check_reachable
from lightning_coreset.qualified_names import alike, listed, not_pruned
from lightning_coreset.structure import analyse
from lightning_coreset.tables import html_table, number_columns, shortened, text_table


def deep(layers: int = 60) -> nn.Sequential:
    inner = [module for _ in range(layers - 2) for module in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *inner, nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a.0", "a.1"], ["a.0", "a.1"]),  # two are not worth it
        (["a.0", "b", "a.1", "a.2"], ["a.0-2 (3)", "b"]),
        (["a.0.x", "a.2.x", "a.4.x"], ["a.0-4.x (3)"]),
        (["a.0", "a.1", "a.3"], ["a.0 and 2 more like it"]),
        (["a.3", "a.2", "a.1"], ["a.1-3 (3)"]),
        (["layer1.0", "layer1.1", "layer2.0"], ["layer1.0 and 2 more like it"]),
        (["'a.0'", "'a.1'", "'a.2'"], ["'a.0-2' (3)"]),
        (["a (1 parameter)", "a (2 parameters)", "a (3 parameters)"], None),
        (["a", "a", "a"], ["a and 2 more like it"]),
        (["0", "2", "4"], ["0-4 (3)"]),
    ],
)
def test_names_that_only_differ_in_a_number_are_one_entry(names, labels):
    entries = alike(names)

    assert [label for label, _ in entries] == (names if labels is None else labels)
    assert sorted(name for _, own in entries for name in own) == sorted(names)


def test_lists_count_what_they_leave_out():
    names = [*(f"a.{number}" for number in range(5)), "b", *(f"c.{number}" for number in range(3)), "d"]

    assert listed(names, most=2) == "a.0-4 (5), b and 4 more"
    assert listed(names[:4]) == "a.0, a.1, a.2, a.3"  # as long as all can be named, they are


def test_reasons_are_lines_of_their_own():
    skipped = {"stem": "is gated", "head": "is a bias", **{f"blocks.{number}.out": "is gated" for number in range(12)}}

    assert not_pruned(skipped) == [
        "not pruned: stem, blocks.0-11.out (12): each is gated",
        "not pruned: head is a bias",
    ]


def test_an_error_about_a_long_network_is_short():
    model = deep()
    structure = analyse(model, torch.randn(1, 8))
    with pytest.raises(ValueError, match="at most") as caught:
        check_reachable(model, structure, Request(0.9, min_channels=12))
    assert "0-116 (59) (" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_columns_of_numbers():
    rows = [("group", "a", "b", "c", "d"), ("0", "1,024", "64 -> 48", "rank", ""), ("1", "-3.1%", "1e-05", "3", "2 kB")]

    assert number_columns(rows) == [False, True, True, False, True]
    assert number_columns(rows, names=False)[0]
    assert number_columns([("a", "b")]) == [False, True]


def test_a_text_is_shortened_in_the_middle():
    assert shortened("abcdefghijkl", 12) == "abcdefghijkl"
    assert shortened("abcdefghijklm", 12) == "abc...hijklm"
    assert len(shortened("x" * 99, 20)) == 20


class Tags(html.parser.HTMLParser):
    """The tags that are open, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(source: str) -> str:
    """The text of a piece of HTML whose tags are closed."""
    parser = Tags()
    parser.feed(source)
    parser.close()
    assert parser.open == []
    return parser.text


def test_html_is_escaped():
    source = html_table([("name", "n"), ("<script>alert(1)</script>&", "1")])

    assert "<script>" not in source
    assert "<script>alert(1)</script>&" in read(source)


def shown() -> dict[str, object]:
    model = deep()
    x = torch.randn(1, 8)
    plan = plan_pruning(model, x, 0.5)
    structure = analyse(model, x)
    return {
        "plan": plan,
        "group of a plan": plan.groups[0],
        "change": plan.changes[0],
        "structure": structure,
        "group": structure.groups[0],
        "member": structure.groups[0].members[0],
        "scan": sensitivity_scan(deep(3), x, lambda network: 1.0, ratios=(0.5,), self_check=False),
        "callback": CoresetPruningCallback(0.5, ignore=[f"layer{number}" for number in range(99)], example_inputs=x),
    }


SHOWN = shown()


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_one_short_line(name):
    text = repr(SHOWN[name])

    assert len(text) < 300
    assert "\n" not in text
    assert " object at 0x" not in text


@pytest.mark.parametrize("name", ["plan", "structure", "scan"])
def test_notebooks_get_a_table(name):
    text = read(SHOWN[name]._repr_html_())  # type: ignore[attr-defined]

    assert "group" in text


def test_a_plan_says_what_it_does():
    plan = SHOWN["plan"]
    assert isinstance(plan, PruningPlan)

    assert repr(plan).startswith(f"<PruningPlan: 59 of 59 groups smaller, {plan.params_before:,} -> ")
    assert "59 groups" in plan._repr_html_()
    assert len(str(plan).splitlines()) == 2 + 59 + 3 + 1  # what print shows is complete
    few = plan.table(most=10).splitlines()
    assert few[12] == "... and 49 more groups"
    lost = [int(line.split()[5].replace(",", "")) for line in few[2:12]]
    assert lost == sorted(lost)
    assert -lost[0] == max(group.params_removed for group in plan.groups)


def test_a_plan_is_pickled_and_compared_as_before():
    plan = SHOWN["plan"]
    assert isinstance(plan, PruningPlan)
    again = pickle.loads(pickle.dumps(plan))

    assert repr(again) == repr(plan)
    assert again.groups == plan.groups
    assert {hash(group) for group in again.groups} == {hash(group) for group in plan.groups}
    assert again != plan  # it holds tensors: one and the same only equals itself


def test_a_structure_prints_as_a_table():
    structure = analyse(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(1, 4))

    assert str(structure).splitlines() == [
        "group  classes  made by  read by  channelwise  remark",
        "---------------------------------------------------------",
        "0            8        1        1            3  normalised",
        "not pruned: 2 makes outputs of the network",
    ]
    assert text_table([("a",)]) == "a\n-"
