import pytest
import torch
from torch import nn

from lightning_coreset.training.metrics.outputs import find_classifier
from lightning_coreset.training.metrics.recorder import Call

B, K = 4, 3
X = torch.randn(B, 5)
Y = torch.tensor([0, 2, 1, 0])
NETWORK = nn.Linear(5, K)
PLAIN = nn.Softmax(1)


def call(output, name="net", args=(X,), module: nn.Module = NETWORK, **kwargs):
    return Call(name, module, args, kwargs, output)


def logits(*shape):
    return torch.randn(shape)


@pytest.mark.parametrize(
    ("batch", "targets"),
    [
        ((X, Y), (1,)),
        ([X, [Y]], (1, 0)),
        ({"x": X, "y": Y}, ("y",)),
        ((X, {"meta": {"Label": Y, "index": Y.flip(0)}}), (1, "meta", "Label")),
        ((X, Y, torch.tensor([7, 8, 9, 10])), (1,)),  # an index
        ((X, Y, torch.tensor([-1, 0, 1, 1])), (1,)),  # no group at all
        ((X, Y, torch.tensor([0, 1])), (1,)),  # of another length
        ((X, Y, torch.zeros(B, 2, dtype=torch.long)), (1,)),
        ((X, Y, torch.zeros(B, dtype=torch.complex64)), (1,)),
        ((X, Y[:, None]), (1,)),
        ((X, Y, Y.flip(0)), None),
        (X, None),
        ((), None),
    ],
)
def test_targets_in_a_batch(batch, targets):
    found = find_classifier([call(logits(B, K))], batch)

    assert (found and found.targets) == targets


@pytest.mark.parametrize(
    ("output", "where"),
    [
        (logits(B, K), ()),
        ((logits(B, K), logits(B, K, 7)), (0,)),
        ({"out": logits(B, K), "loss": torch.ones(())}, ("out",)),
        ({"logits": logits(B, K), "embedding": logits(B, 16)}, ("logits",)),
        ({"out": logits(B, K), "embedding": logits(B, 16)}, None),
        (logits(B, K).long(), None),
        (logits(B, 2), None),  # for three labels
        (logits(B), None),
        (logits(B, 1), None),
        (logits(B + 1, K), None),
        (torch.zeros(B, 0), None),
        (None, None),
    ],
)
def test_logits_in_an_output(output, where):
    found = find_classifier([call(output)], (X, Y))

    assert (found and found.output) == where


def test_two_labels_of_a_sample_are_not_two_samples():
    """Two labels a sample, and the logits of both in separate rows: it is unknown which belong together."""
    assert find_classifier([call(logits(2 * B, K))], (X, torch.zeros(B, 2, dtype=torch.long))) is None


FEATURES, LOGITS = logits(B, 8), logits(B, K)


@pytest.mark.parametrize(
    ("calls", "module", "replayable"),
    [
        ([call(LOGITS)], "net", True),
        ([call(FEATURES, "encoder"), call(LOGITS, "head", (FEATURES.view(B, 8, 1),))], "head", False),
        ([call(LOGITS), call(LOGITS.softmax(1), "softmax", (LOGITS,), PLAIN)], "net", True),
        ([call(X * 2, "augment", (X,), PLAIN), call(LOGITS, args=(X * 2,))], None, None),  # as wide as logits might be
        ([call(LOGITS), call(torch.ones(()), "loss", (LOGITS, Y))], "net", True),
        ([call(LOGITS), call(logits(B, K), "teacher")], None, None),
        ([call(LOGITS, args=(X, Y))], None, None),
        ([call(LOGITS, labels=Y)], "net", True),
        ([call(LOGITS, y=Y)], None, None),
        ([], None, None),
    ],
)
def test_which_network_it_is(calls, module, replayable):
    found = find_classifier(calls, (X, Y))

    assert (found and (found.module, found.replayable)) == (module and (module, replayable))


@pytest.mark.parametrize("shape", [(B,), (B, 1)])
@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((X, Y % 2), True),
        ((X, Y % 2 == 0), True),
        ((X, X[:, 0]), False),
        ((X, Y % 2, X[:, 0].clone()), False),  # a regression, with a flag
        ((X, Y % 2, X[:, :2].clone()), True),
    ],
)
def test_a_single_logit(shape, batch, found):
    assert (find_classifier([call(logits(*shape))], batch) is not None) == found


def test_the_only_input_may_be_as_wide_as_a_single_logit():
    x = torch.randn(B, 1)

    assert find_classifier([call(logits(B, 1), args=(x,))], (x, Y % 2)) is not None


@pytest.mark.parametrize(
    ("calls", "batch"),
    [
        ([], (X, Y)),
        ([call(logits(B, K), "other")], (X, Y)),
        ([call(logits(B, K)), call(logits(B, K))], (X, Y)),
        ([call([logits(B, K)])], (X, Y)),
        ([call(logits(B, K + 1))], (X, Y)),
        ([call(logits(B, K, 1))], (X, Y)),
        ([call(logits(B, K).long())], (X, Y)),
        ([call(logits(B, K))], (X,)),
        ([call(logits(B - 1, K))], (X, Y)),
    ],
)
def test_a_later_batch_that_does_not_fit(calls, batch):
    found = find_classifier([call(logits(B, K))], (X, Y))
    assert found is not None

    assert found.read(calls, batch) is None


def test_reading_a_later_batch():
    found = find_classifier([call({"logits": logits(B, 1)})], (X, Y[:, None] % 2))
    later = call({"logits": logits(2, 1)})
    assert found is not None

    read = found.read([call(None, "other"), later], (X, torch.tensor([[1], [0]], dtype=torch.uint8)))

    assert read is not None
    assert read[0] is later
    assert torch.equal(read[1], later.output["logits"].flatten())
    assert torch.equal(read[2], torch.tensor([1, 0]))
    assert read[2].dtype == torch.int64
