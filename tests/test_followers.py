import pytest
import torch

from lightning_coreset.followers import follow, hold_weights
from lightning_coreset.plan import ParameterChange

KEPT = torch.tensor([0, 2, 3, 6])


def change_of(old, new, **fields):
    return ParameterChange(fields.pop("name", "weight"), tuple(old.shape), tuple(new.shape), {0: KEPT}, **fields)


def test_what_equals_the_weights_equals_them_afterwards():
    old, new = torch.randn(8, 5), torch.randn(4, 5)
    assert torch.equal(follow(old.clone(), change_of(old, new, value=new), old, new), new)


def test_the_difference_to_the_weights_stays():
    old, new, follower = torch.randn(8, 5).double(), torch.randn(4, 5).double(), torch.randn(8, 5).double()
    moved = follow(follower, change_of(old, new, value=new), old, new)
    torch.testing.assert_close(moved - new, (follower - old)[KEPT], rtol=0, atol=1e-12)


def test_factors_multiply_it():
    old, follower, factors = torch.randn(8, 5), torch.randn(8, 5), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    new = old[KEPT] * factors[:, None].float()
    moved = follow(follower, change_of(old, new, factors={0: factors}), old, new)
    assert torch.equal(moved, follower[KEPT] * factors[:, None].float())


def test_a_running_variance_stays_positive():
    old, new, follower = torch.full((8,), 4.0), torch.full((4,), 1.0), torch.full((8,), 0.5)
    moved = follow(follower, change_of(old, new, value=new, name="bn.running_var"), old, new)
    torch.testing.assert_close(moved, torch.full((4,), 0.125), rtol=0, atol=0)


def test_dtype_and_memory_format_are_the_followers():
    old, new = torch.randn(8, 5, 3, 3), torch.randn(4, 5, 3, 3)
    follower = old.bfloat16().contiguous(memory_format=torch.channels_last)
    moved = follow(follower, change_of(old, new, value=new), old, new)
    assert moved.dtype == torch.bfloat16
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_integers_are_only_sliced():
    old, new, follower = torch.randn(8), torch.randn(4), torch.arange(8)
    assert torch.equal(follow(follower, change_of(old, new, value=new), old, new), KEPT)


WEIGHTS = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(16)]
NOISE = [torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in WEIGHTS]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (WEIGHTS, True),
        ([weight + 0.5 * noise for weight, noise in zip(WEIGHTS, NOISE, strict=True)], True),
        ([weight.half() for weight in WEIGHTS], True),
        (NOISE, False),
        ([0.01 * weight for weight in WEIGHTS], False),  # momentum under weight decay
        ([weight.square() for weight in WEIGHTS], False),
        ([torch.zeros_like(weight) for weight in WEIGHTS], False),
        ([torch.full_like(weight, float("nan")) for weight in WEIGHTS], False),
        ([weight.round().long() for weight in WEIGHTS], False),
        ([], False),
    ],
    ids=["equal", "near", "half", "noise", "small", "squares", "zeros", "nan", "integers", "none"],
)
def test_what_looks_like_the_weights(tensors, expected):
    assert hold_weights(zip(tensors, WEIGHTS, strict=False)) is expected
