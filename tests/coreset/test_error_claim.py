"""Claims are proven only if they are true: against strong attacks, with constants, and where an attack misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_coreset.coreset import certify, find_activation, largest_found_error
from lightning_coreset.coreset.error_claim import ErrorClaim

pytestmark = pytest.mark.usefixtures("double_precision")


def claim_of(op: str, seed: int, rows: int = 12, channels: int = 15) -> ErrorClaim:
    generator = torch.Generator().manual_seed(seed)
    activation = find_activation(op)
    assert activation is not None
    return ErrorClaim(
        torch.randn(rows, channels, generator=generator),
        torch.randn(rows, generator=generator) * (seed % 3),
        torch.zeros(rows),
        torch.randn(channels, 4, generator=generator),
        activation,
        1.5,
        1.0,
    )


def strongest(claim: ErrorClaim) -> float:
    return float(
        largest_found_error(
            claim.change,
            claim.producers,
            claim.activation,
            input_radius=claim.input_radius,
            generator=torch.Generator().manual_seed(9),
            constant=claim.constant,
        ).max()
    )


def decided(claim: ErrorClaim, limit: float) -> bool:
    return replace(claim, limit=limit).proven(torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("op", ["relu", "gelu", "sigmoid", ""])
@pytest.mark.parametrize("seed", range(4))
def test_no_claim_is_proven_that_an_input_refutes(op, seed):
    claim = claim_of(op, seed)
    worst = strongest(claim)
    for part in (0.3, 0.9, 0.999):
        assert not decided(claim, part * worst)
    proven = certify(claim.change, claim.producers, claim.activation, input_radius=1.5).bound + claim.constant.abs()
    assert decided(claim, 1.01 * float(proven.max()))
    assert float(proven.max()) >= worst


@pytest.mark.parametrize("seed", range(3))
def test_an_attack_that_misses_proves_nothing(seed, monkeypatch):
    claim = claim_of("relu", seed)
    limit = 0.98 * strongest(claim)
    monkeypatch.setattr(ErrorClaim, "_attacked", lambda self, rows, generator: torch.zeros(len(rows)))
    assert not decided(claim, limit)
    assert replace(claim, limit=limit).found(torch.Generator()) == 0.0


def test_what_is_found_is_found_with_its_constant():
    claim = claim_of("relu", 2, rows=5)
    alone = largest_found_error(
        claim.change, claim.producers, claim.activation, input_radius=1.5, generator=torch.Generator().manual_seed(0)
    )
    found = claim.found(torch.Generator().manual_seed(0))
    assert found <= strongest(claim) * (1 + 1e-9)
    assert found > 0.9 * strongest(claim)
    assert abs(strongest(claim) - float(alone.max())) > 1e-3


def test_rounding_of_constants_is_added():
    claim = claim_of("relu", 0)
    proven = certify(claim.change, claim.producers, claim.activation, input_radius=1.5).bound
    limit = 1.05 * float((proven + claim.constant.abs()).max())
    assert decided(claim, limit)
    assert not decided(replace(claim, rounded=torch.full((12,), 0.1 * limit)), limit)


def test_rows_with_cheap_proofs_cost_nothing():
    claim = claim_of("relu", 1)
    cheap = certify(claim.change, claim.producers, claim.activation, input_radius=1.5, sharpen=False).bound
    loose = replace(claim, limit=2 * float((cheap + claim.constant.abs()).max()))
    assert loose.undecided == 0
    assert loose.proven(torch.Generator()) == (True, 0)
    assert replace(claim, limit=float("nan")).proven(torch.Generator())[0] is False
