"""Elimination against one at a time and enumeration, weights against least squares, errors against Monte Carlo."""

import itertools

import pytest
import torch

from lightning_coreset.coreset import (
    activation_moments,
    eliminate,
    expected_error,
    find_activation,
    linear_preactivations,
    mixing_matrix,
    reconstruct,
    spatial_correlation,
    variance_ratios,
)

RELU = find_activation("relu")


def _problem(channels=24, inputs=8, outputs=10, seed=0, centred=False):
    generator = torch.Generator().manual_seed(seed)
    producers = torch.randn(channels, inputs + 1, generator=generator, dtype=torch.float64)
    moments = activation_moments(RELU, linear_preactivations(producers))
    moment = moments.covariance if centred else moments.second
    return producers, moment, torch.randn(outputs, channels, generator=generator, dtype=torch.float64), moments.mean


def _error(moment, consumers, kept, ridge=1e-3):
    change = consumers.clone()
    change[:, kept] -= consumers @ mixing_matrix(moment, kept, ridge=ridge)
    return float(((change @ moment) * change).sum())


def _one_at_a_time(moment, consumers, size, ridge, classes):
    """The definition: drop the class whose joint removal raises the error least per channel; solve again."""
    alive, amount = list(range(len(moment))), ridge * moment.diagonal().mean()

    def solution(kept):
        within = moment[kept][:, kept] + amount * torch.eye(len(kept), dtype=torch.float64)
        return torch.linalg.inv(within)

    while len(alive) > size and len({int(classes[p]) for p in alive}) > 1:
        precision = solution(alive)
        fitted = consumers @ moment[:, alive] @ precision
        best = None
        for label in sorted({int(classes[p]) for p in alive}):
            block = [i for i, p in enumerate(alive) if int(classes[p]) == label]
            own, joint = fitted[:, block], torch.linalg.inv(precision[block][:, block])
            cost = float(torch.trace(own @ joint @ own.T)) / len(block)
            if best is None or cost < best[0]:
                best = (cost, label)
        alive = [p for p in alive if int(classes[p]) != best[1]]
    return torch.tensor(alive)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("outputs", [3, 40])
@pytest.mark.parametrize("size", [1, 7, 12, 23])
def test_as_many_rounds_as_channels_is_one_at_a_time(size, outputs, centred):
    _, moment, consumers, _ = _problem(outputs=outputs, centred=centred)
    expected = _one_at_a_time(moment, consumers, size, 1e-3, torch.arange(24))
    for rounds in (1, 24):
        assert eliminate(moment, consumers, size, rounds=rounds).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [12, 40, 66])
def test_rounds_come_close_to_one_at_a_time(size):
    _, moment, consumers, _ = _problem(80, 15, 20)
    slow = _error(moment, consumers, _one_at_a_time(moment, consumers, size, 1e-3, torch.arange(80)))
    for rounds in (4, 16, 32):
        assert _error(moment, consumers, eliminate(moment, consumers, size, rounds=rounds)) <= 1.03 * slow


@pytest.mark.parametrize("size", [2, 4])
def test_close_to_the_best_subset(size):
    _, moment, consumers, _ = _problem(9, 5, 4)
    errors = [_error(moment, consumers, torch.tensor(s)) for s in itertools.combinations(range(9), size)]
    assert len(set(errors)) > 10
    found = _error(moment, consumers, eliminate(moment, consumers, size))
    assert min(errors) - 1e-12 <= found <= 1.25 * min(errors)


@pytest.mark.parametrize(
    ("sizes", "size"), [([2] * 12, 12), ([3] * 8, 10), ([1] * 6 + [2] * 3 + [6] * 2, 12), ([24], 5), ([12, 12], 3)]
)
@pytest.mark.parametrize("rounds", [1, 24])
def test_classes_go_whole_at_their_joint_cost(sizes, size, rounds):
    _, moment, consumers, _ = _problem()
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    classes = labels[torch.randperm(24, generator=torch.Generator().manual_seed(2))]
    kept = eliminate(moment, consumers, size, rounds=rounds, classes=classes)
    assert len(kept) <= size or len(classes[kept].unique()) == 1
    for label in classes[kept].unique():
        assert int((classes[kept] == label).sum()) == int((classes == label).sum())
    assert kept.tolist() == _one_at_a_time(moment, consumers, size, 1e-3, classes).tolist()


def test_a_class_of_two_stand_ins_is_not_free():
    # Each of channels 0 and 1 is free alone (they are twins), dropping both is dear; 2 and 3 cost little together.
    moment = torch.eye(4, dtype=torch.float64)
    moment[0, 1] = moment[1, 0] = 1
    consumers = torch.tensor([[1.0, 1.0, 0.3, 0.3]], dtype=torch.float64)
    assert eliminate(moment, consumers, 2, classes=torch.tensor([0, 0, 1, 1])).tolist() == [0, 1]


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_is_the_one_that_samples_show(centred):
    producers, moment, consumers, mean = _problem(centred=centred)
    result = reconstruct(moment, consumers, 8, mean=mean if centred else None)
    x = torch.randn(100000, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    h = (x @ producers[:, :-1].T + producers[:, -1]).clamp(min=0)
    approximation = h[:, result.kept] @ result.mix.T + result.offset
    sampled = float(((h - approximation) @ consumers.T).square().sum(dim=1).mean())
    assert result.error == pytest.approx(sampled, rel=0.02)
    centre = mean if centred else torch.zeros_like(mean)
    assert result.energy == pytest.approx(float(((h - centre) @ consumers.T).square().sum(dim=1).mean()), rel=0.02)
    if centred:
        residual = ((h - approximation) @ consumers.T).mean(dim=0)
        torch.testing.assert_close(residual, torch.zeros_like(residual), rtol=0, atol=0.05)


def test_mixing_is_least_squares():
    _, moment, _, _ = _problem()
    kept = torch.tensor([1, 4, 11, 17])
    mix = mixing_matrix(moment, kept, ridge=1e-12)
    torch.testing.assert_close(mix, moment[:, kept] @ torch.linalg.inv(moment[kept][:, kept]))
    ridged = mixing_matrix(moment, kept, ridge=0.1)
    amount = 0.1 * moment.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    expected = moment[:, kept] @ torch.linalg.inv(moment[kept][:, kept] + amount)
    rest = [p for p in range(24) if p not in kept.tolist()]
    torch.testing.assert_close(ridged[rest], expected[rest])
    assert torch.equal(ridged[kept], torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("size", [24, 30])
def test_full_size_is_the_identity(size):
    _, moment, consumers, mean = _problem(centred=True)
    result = reconstruct(moment, consumers, size, mean=mean)
    assert result.kept.tolist() == list(range(24))
    assert torch.equal(result.mix, torch.eye(24, dtype=torch.float64))
    assert not result.offset.any()
    assert result.error == 0


def test_duplicates_merge_without_loss():
    producers, _, consumers, _ = _problem()
    twins = torch.cat([producers, 2.5 * producers])[torch.randperm(48, generator=torch.Generator().manual_seed(1))]
    moment = activation_moments(RELU, linear_preactivations(twins)).second
    consumers = torch.cat([consumers, consumers.flip(0)], dim=1)
    exact = reconstruct(moment, consumers, 24, ridge=1e-10)
    directions = twins[exact.kept] / twins[exact.kept].norm(dim=1, keepdim=True)
    assert (directions @ directions.T - torch.eye(24, dtype=torch.float64)).max() < 0.999  # one of each pair
    assert exact.error < 1e-8 * exact.energy
    assert reconstruct(moment, consumers, 24).error < 1e-3 * exact.energy  # the default ridge costs a little
    assert reconstruct(moment, consumers, 23, ridge=1e-10).error > 1e-5 * exact.energy


def test_dead_and_unread_channels_go_first():
    producers, _, consumers, _ = _problem()
    producers[3], producers[9, :-1], producers[9, -1] = 0, 0, -1.0
    consumers[:, 14] = 0
    moment = activation_moments(RELU, linear_preactivations(producers)).second
    kept = eliminate(moment, consumers, 22)
    assert not {3, 9} & set(kept.tolist())
    assert reconstruct(moment, consumers, 22).error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("consumers", [torch.ones(2, 5), torch.zeros(2, 5)])
def test_a_group_without_moments_still_keeps_its_size(consumers):
    result = reconstruct(torch.zeros(5, 5), consumers, 2)
    assert len(result.kept) == 2
    assert bool(result.mix.isfinite().all())
    assert result.error == 0


def test_a_single_channel_stays():
    assert reconstruct(torch.ones(1, 1), torch.ones(1, 1), 1).kept.tolist() == [0]


def test_permuting_channels_permutes_the_coreset():
    _, moment, consumers, _ = _problem()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(4))
    plain = eliminate(moment, consumers, 9)
    permuted = eliminate(moment[order][:, order], consumers[:, order], 9)
    assert sorted(order[permuted].tolist()) == plain.tolist()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_do_not_matter(factor):
    _, moment, consumers, _ = _problem()
    plain, scaled = reconstruct(moment, consumers, 9), reconstruct(moment * factor, consumers / factor, 9)
    assert plain.kept.tolist() == scaled.kept.tolist()
    torch.testing.assert_close(plain.mix, scaled.mix)


def test_inputs_are_left_alone_and_nothing_is_random():
    _, moment, consumers, _ = _problem()
    before, state = moment.clone(), torch.get_rng_state()
    first, second = reconstruct(moment, consumers, 9), reconstruct(moment, consumers, 9)
    assert torch.equal(moment, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.kept, second.kept)
    assert torch.equal(first.mix, second.mix)


def test_float32_moments_give_nearly_the_same():
    _, moment, consumers, _ = _problem(120, 20, 30)
    exact = _error(moment, consumers, eliminate(moment, consumers, 40))
    assert _error(moment, consumers, eliminate(moment.float(), consumers.float(), 40)) <= 1.01 * exact


def test_expected_error_is_the_trace():
    _, moment, consumers, _ = _problem()
    assert expected_error(moment, consumers) == pytest.approx(float(torch.trace(consumers @ moment @ consumers.T)))


def test_variance_ratios_are_those_of_samples():
    generator = torch.Generator().manual_seed(6)
    _, moment, _, _ = _problem(centred=True)
    consumers = torch.randn(5, 24, 4, generator=generator, dtype=torch.float64)
    kept = torch.tensor([0, 5, 6, 20])
    new = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64)
    rho = spatial_correlation((2, 2), 0.7)
    factor = torch.linalg.cholesky(torch.kron(moment, rho) + 1e-12 * torch.eye(96, dtype=torch.float64))
    h = (torch.randn(100000, 96, generator=generator, dtype=torch.float64) @ factor.T).view(-1, 24, 4)
    before = torch.einsum("bnk,onk->bo", h, consumers).var(dim=0)
    after = torch.einsum("bnk,onk->bo", h[:, kept], new).var(dim=0)
    torch.testing.assert_close(variance_ratios(moment, consumers, kept, new, rho), after / before, rtol=0.03, atol=0)


def test_an_output_without_variance_keeps_its_own():
    ratios = variance_ratios(torch.eye(2), torch.zeros(1, 2, 1), torch.tensor([0]), torch.zeros(1, 1, 1), torch.eye(1))
    assert ratios.tolist() == [1.0]


@pytest.mark.parametrize(
    ("moment", "consumers", "size", "options"),
    [
        (torch.eye(3), torch.ones(1, 2), 1, {}),
        (torch.ones(3, 2), torch.ones(1, 3), 1, {}),
        (torch.eye(3), torch.ones(1, 3), 0, {}),
        (torch.eye(3), torch.ones(1, 3), 1, {"rounds": 0}),
        (torch.eye(3), torch.ones(1, 3), 1, {"classes": torch.arange(2)}),
    ],
)
def test_impossible_requests_are_refused(moment, consumers, size, options):
    with pytest.raises(ValueError, match="Expected"):
        eliminate(moment, consumers, size, **options)
