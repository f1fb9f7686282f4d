"""Public names of version 0.1 that were renamed."""

from __future__ import annotations

import pickle

import pytest

from lightning_coreset import coreset


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Reconstruction", "LeastSquaresFit"),
        ("condensed", "compress_rows"),
        ("gram", "activation_moments"),
        ("linear_law", "linear_preactivations"),
        ("normalised_law", "batchnorm_preactivations"),
    ],
)
def test_an_old_name_is_the_new_one_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"coreset.{old} was renamed: use {new}"):
        assert getattr(coreset, old) is getattr(coreset, new)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'grams'"):
        coreset.grams  # noqa: B018


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("structure.groups", "ChannelGroup"),
        ("structure.groups", "Step"),
        ("coreset.reconstruction", "Reconstruction"),
        ("training.report.history", "EventRecord"),
        ("training.report.history", "GroupRecord"),
    ],
)
def test_a_pickle_of_version_0_1_finds_its_class(module, name):
    stream = f"clightning_coreset.{module}\n{name}\n.".encode()  # what a pickle says of an object's class
    assert isinstance(pickle.loads(stream), type)


def test_the_documented_module_of_the_theorem_warns():
    from lightning_coreset.coreset import bounds

    with pytest.warns(DeprecationWarning, match="bounds.sample_size was renamed: use .*sampling_bounds.sample_size"):
        assert bounds.sample_size is coreset.sample_size
    with pytest.raises(AttributeError, match="no attribute 'sizes'"):
        bounds.sizes  # noqa: B018
