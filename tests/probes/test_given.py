"""What users give: kinds of inputs, and a function in place of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_coreset.probes import as_probes, register_probe, synthetic_inputs
from lightning_coreset.structure import Example

MODEL = nn.Linear(6, 4)
EXAMPLE = Example.of({"input": torch.zeros(2, 6)})


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ones(leaf, samples, generator):
    return torch.ones(samples, *leaf.value.shape[1:])


def always(leaf):
    return True


def test_a_registered_kind_comes_first_until_it_is_removed():
    with register_probe("ones", always, ones):
        assert (synthetic_inputs(MODEL, EXAMPLE, 8, rng()).inputs["input"] == 1).all()
        with register_probe("twos", always, lambda *args: 2 * ones(*args)):
            assert (synthetic_inputs(MODEL, EXAMPLE, 8, rng()).inputs["input"] == 2).all()
        with register_probe("none", lambda leaf: leaf.path == ("other",), ones):
            assert (synthetic_inputs(MODEL, EXAMPLE, 8, rng()).inputs["input"] == 1).all()
    assert synthetic_inputs(MODEL, EXAMPLE, 8, rng()).inputs["input"].std() > 0.5


def test_a_registered_kind_is_converted():
    with register_probe("ones", always, lambda *args: ones(*args).double()):
        assert synthetic_inputs(MODEL, EXAMPLE, 8, rng()).inputs["input"].dtype == torch.float32


@pytest.mark.parametrize("name", ["images", "taken", "", 3])
def test_a_kind_needs_a_new_name(name):
    with register_probe("taken", always, ones), pytest.raises(ValueError, match="the name of a new kind of inputs"):
        register_probe(name, always, ones)


def test_a_kind_needs_two_functions():
    with pytest.raises(ValueError, match="two functions for the inputs 'mine'"):
        register_probe("mine", always, torch.ones(3))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (torch.ones(8, 5), r"shape \(3, 6\) but got float32 of shape \(8, 5\) on cpu"),
        (None, r"shape \(3, 6\) but got None"),
    ],
)
def test_a_kind_that_makes_other_shapes_is_an_error(made, words):
    with register_probe("wrong", always, lambda *args: made), pytest.raises(ValueError, match=words):
        synthetic_inputs(MODEL, EXAMPLE, 8, rng())


def test_nothing_given_is_what_the_package_makes():
    assert as_probes(None) is synthetic_inputs


def test_a_function_of_the_inputs_and_the_generator_makes_them():
    def probes(inputs, generator):
        return {"input": torch.rand(32, inputs["input"].shape[1], generator=generator)}

    made = as_probes(probes)(MODEL, EXAMPLE, 8, rng())

    assert made.batch_size == 32
    assert torch.equal(made.inputs["input"], torch.rand(32, 6, generator=rng()))


def test_a_function_that_uses_the_global_generator_leaves_no_trace():
    before = torch.get_rng_state()

    as_probes(lambda inputs, generator: {"input": torch.randn(4, 6)})(MODEL, EXAMPLE, 8, rng())

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("probes", [3, "dead leaves", nn.Linear, torch.zeros(2, 6)], ids=str)
def test_probes_are_a_function(probes):
    with pytest.raises(ValueError, match="probes to be a function of the example inputs"):
        as_probes(probes)


PAIR = {"input": torch.zeros(2, 6), "mask": torch.zeros(3)}
WRONG = {
    "a tensor": (torch.zeros(2, 6), "dict with tensors at ['input'], ['mask'], but got a tensor"),
    "a tuple": ((torch.zeros(2, 6),), "but got tuple with tensors at [0]"),
    "a part": ({"input": torch.zeros(2, 6)}, "but got dict with tensors at ['input']"),
    "nothing": (None, "but got NoneType with tensors at no place"),
    "width": (
        {**PAIR, "input": torch.zeros(9, 7)},
        "inputs['input'] as float32 of shape (2, 6) on cpu, with any number",
    ),
    "dtype": ({**PAIR, "input": torch.zeros(9, 6).double()}, "but got float64 of shape (9, 6) on cpu"),
    "no batch": ({**PAIR, "mask": torch.zeros(4)}, "inputs['mask'] as float32 of shape (3,) on cpu, but got"),
    "no samples": (
        {**PAIR, "input": torch.zeros(0, 6)},
        "one number of samples, above 0, but got 0 in inputs['input']",
    ),
}


@pytest.mark.parametrize(("returned", "words"), WRONG.values(), ids=WRONG)
def test_what_a_function_returns_has_the_structure_of_the_inputs(returned, words):
    make = as_probes(lambda inputs, generator: returned)

    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the words are compared below)
        make(MODEL, Example.of(PAIR), 8, rng())

    assert words in str(raised.value)


def test_all_inputs_of_a_function_have_as_many_samples():
    example = Example.of((torch.zeros(2, 6), torch.zeros(2, 4)))
    make = as_probes(lambda inputs, generator: (torch.zeros(8, 6), torch.zeros(9, 4)))

    with pytest.raises(ValueError, match=r"but got 8 in inputs\[0\], 9 in inputs\[1\]"):
        make(MODEL, example, 8, rng())
