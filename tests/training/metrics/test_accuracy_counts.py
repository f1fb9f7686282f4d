"""Counts of right answers: batches that are counted many at once come to the same as one after the other."""

from __future__ import annotations

import pytest
import torch

from lightning_coreset.training.metrics.scoring import _BATCHES_AT_ONCE, Accuracy, AccuracyCounts, NoNumberError

BATCHES = [1, _BATCHES_AT_ONCE - 1, _BATCHES_AT_ONCE, _BATCHES_AT_ONCE + 1, 2 * _BATCHES_AT_ONCE + 3]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GENERATOR = torch.Generator().manual_seed(0)


def logits(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def labels(samples, classes):
    return torch.randint(classes, (samples,), generator=GENERATOR)


def counted(batches):
    """What a count comes to."""
    count = AccuracyCounts()
    for batch in batches:
        count.add_batch(*batch)
    count.count()
    return count.compute().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", BATCHES)
def test_classes(batches, dtype):
    seen = [(logits(size, 5, dtype=dtype), labels(size, 4)) for size in (3, 1, 7)[: batches % 3 + 1] * batches]
    right = sum(int((outputs.argmax(1) == targets).sum()) for outputs, targets in seen)
    largest = max(int(targets.max()) for _, targets in seen)

    assert counted(seen) == [right, right, sum(len(targets) for _, targets in seen), largest + 1, 5, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_binary(batches, dtype, probabilities):
    seen = [(logits(4, dtype=dtype), labels(4, 2)) for _ in range(batches)]
    if probabilities:
        seen = [(outputs.sigmoid(), targets) for outputs, targets in seen]
    at_0, at_half = (sum(int(((o > bar) == t.bool()).sum()) for o, t in seen) for bar in (0.0, 0.5))
    largest = max(int(targets.max()) for _, targets in seen)

    assert counted(seen) == [at_0, at_half, 4 * batches, largest + 1, 2, int(not probabilities), 0]


def test_batches_of_several_kinds():
    seen = [(logits(4, 5), labels(4, 5)), (logits(4), labels(4, 2)), (logits(4, 3), labels(4, 3))]
    alone = torch.tensor([counted([batch]) for batch in seen])
    expected = torch.cat([3 * alone[:, :3].sum(0), alone[:, 3:].amax(0)])

    assert counted(seen * 3) == expected.tolist()


@pytest.mark.parametrize("label", [-100, 5])
@pytest.mark.parametrize("position", [0, _BATCHES_AT_ONCE, 2 * _BATCHES_AT_ONCE])
def test_a_label_out_of_range_is_found_in_any_batch(position, label):
    accuracy = Accuracy()
    count = accuracy.count()
    for number in range(2 * _BATCHES_AT_ONCE + 1):
        targets = labels(4, 5)
        targets[2] = label if number == position else 0
        accuracy.add(count, logits(4, 5), targets)

    with pytest.raises(NoNumberError):
        accuracy.compute(count, everywhere=True)


@pytest.mark.parametrize("shape", [(4, 5), (4,)])
def test_added_tensors_may_be_written_to(shape):
    outputs, targets = logits(*shape), labels(4, 2)
    expected = counted([(outputs.clone(), targets.clone())])
    count = AccuracyCounts()

    count.add_batch(outputs, targets)
    outputs.fill_(7)
    targets.fill_(1 if len(shape) == 1 else 4)
    count.count()

    assert count.compute().tolist() == expected


def test_reset_drops_pending_batches():
    count = AccuracyCounts()
    assert not count.update_called

    count.add_batch(logits(4, 5), labels(4, 5))
    assert count.update_called
    count.reset()

    assert not count.update_called
    count.count()
    assert not count.update_called


def test_many_batches_are_counted_at_once():
    """It costs more than a small network's step."""
    count, updates = AccuracyCounts(), []
    count.update = lambda *counts: updates.append(counts)

    for _ in range(3 * _BATCHES_AT_ONCE):
        count.add_batch(logits(4, 5), labels(4, 5))

    assert len(updates) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4, 5), (4,)])
def test_nothing_waits_for_the_device(shape):
    seen = [(logits(*shape).cuda(), labels(4, 2).cuda()) for _ in range(2 * _BATCHES_AT_ONCE + 1)]
    count = AccuracyCounts().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in seen:
            count.add_batch(*batch)
        count.count()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert count.compute().tolist() == counted([(outputs.cpu(), targets.cpu()) for outputs, targets in seen])


@pytest.mark.gpu
def test_a_model_that_moves():
    seen = [(logits(4, 5), labels(4, 5)) for _ in range(2)]
    count = AccuracyCounts()

    count.add_batch(*seen[0])
    count.to("cuda")
    count.add_batch(seen[1][0].cuda(), seen[1][1])  # targets that stay on the CPU
    count.count()

    assert count.compute().tolist() == counted(seen)
