"""Public names of version 0.1 that were renamed."""

from __future__ import annotations

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
