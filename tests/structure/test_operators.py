"""Rules against torch: the operators of torch's own tests give what the labels say, or are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import pytest
from structure.operator_database import operators
from structure.operator_extras import extra_samples, foreach_samples, whole_samples_of
from structure.operator_samples import Sample, samples_of
from structure.operator_trials import Findings, check

from lightning_coreset.structure.op_call import name_of
from lightning_coreset.structure.ops import aten_rules

UNPROVEN = {
    "draws random numbers": """
        bernoulli dropout exponential native_dropout normal rand_like randn_like rrelu rrelu_with_noise
        uniform
    """,
    "returns no tensor": "_assert_async equal is_nonzero sym_size",
    "is over all elements": "_is_all_true _is_any_true",
    "names strides": "_reshape_alias as_strided",
    "writes what it has observed": "_fused_moving_avg_obs_fq_helper",
    "makes what nobody has written yet": "empty_like new_empty",
    "takes widths that are multiples of 16 bytes": "_grouped_mm",  # tests/test_experts.py
    "is run on other devices than CPUs": """
        cudnn_batch_norm cudnn_convolution miopen_batch_norm mkldnn_convolution mkldnn_max_pool2d
    """,
}
"""Operators with a rule that no case proves, by the reason."""


@contextmanager
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def checked(samples: Iterable[tuple[str, Iterator[Sample]]]) -> Findings:
    found = Findings()
    with without_warnings():
        for name, own in samples:
            try:
                found.add(check(own))
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
    return found


def test_operators_on_cut_inputs_give_what_the_labels_say() -> None:
    """A few of them; the others are slow."""
    found = checked((op.full_name, samples_of(op, 1)) for op in operators()[::20])
    assert not found.wrong, "\n".join(found.wrong)
    assert found.verdicts["agrees"] > 200


def test_rows_moved_by_index_leave_channels_in_place() -> None:
    found = checked([("an operator on rows", extra_samples())])
    assert not found.wrong, "\n".join(found.wrong)
    assert found.proven.keys() >= {"gather", "scatter_add", "index_add", "index_put", "masked_select", "segment_reduce"}


@pytest.fixture(scope="module")
def findings() -> Findings:
    """Of a few samples of every operator, in less than two minutes."""
    most = 2
    of_database = ((op.full_name, chain(samples_of(op, most), whole_samples_of(op, most))) for op in operators())
    return checked(chain(of_database, [("extras", extra_samples()), ("lists", foreach_samples())]))


@pytest.mark.slow
def test_every_operator_gives_what_the_labels_say(findings: Findings) -> None:
    assert not findings.wrong, "\n".join(findings.wrong)


@pytest.mark.slow
def test_every_rule_is_proven(findings: Findings) -> None:
    """Each lets labels pass in some case that agrees: none is only right because it refuses everything."""
    unproven = {name for names in UNPROVEN.values() for name in names.split()}
    names = {name_of(getattr(packet, packet.overloads()[0])) for packet in aten_rules()}
    assert {name for name in names if name not in findings.proven} == unproven & names


@pytest.mark.slow
def test_no_rule_fails_by_mistake(findings: Findings) -> None:
    """A rule that raises an error refuses a call, which is meant where it says what it cannot follow."""
    meant = ("aten._trilinear: a product of three", "aten.squeeze: in place", "aten.constant_pad_nd: negative padding")
    assert not [reason for reason in findings.failed if not any(words in reason for words in meant)]
