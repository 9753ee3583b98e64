"""Leading singular vectors and the largest cosine to any singular vector, against whole SVDs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg import largest_cosines, leading_svd


def weight(m: int, n: int) -> Tensor:
    """A matrix with a few strong directions over a bulk, as trained weights have."""
    k = min(m, n)
    U, V = torch.linalg.qr(torch.randn(m, k)).Q, torch.linalg.qr(torch.randn(n, k)).Q
    bulk = torch.linalg.svdvals(torch.randn(m, n) / math.sqrt(max(m, n)))
    return (U * (bulk + 6 * torch.arange(1, k + 1) ** -0.6)) @ V.T


def exact(M: Tensor, X: Tensor) -> Tensor:
    return (torch.linalg.svd(M, full_matrices=False).U.T @ X / X.norm(dim=0)).abs().amax(dim=0)


SHAPES = [(200, 200), (150, 320), (400, 180)]


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_triplets_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    M = weight(*shape)
    found, expected = leading_svd(M, 8), torch.linalg.svd(M, full_matrices=False)
    torch.testing.assert_close(found.S, expected.S[:8], rtol=1e-5, atol=0)
    assert ((found.U * expected.U[:, :8]).sum(0).abs() > 1 - 1e-4).all()
    assert ((found.Vh * expected.Vh[:8]).sum(1).abs() > 1 - 1e-4).all()


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_leading_triplets_of_small_and_of_low_rank_matrices(rank: int) -> None:
    for M in (torch.randn(12, 15), torch.randn(40, 2) @ torch.randn(2, 30), torch.zeros(20, 12)):
        found = leading_svd(M, rank)
        torch.testing.assert_close(found.S, torch.linalg.svdvals(M)[:rank], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.U.T @ found.U, torch.eye(rank), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 0.1, 0.6, 5.0])
def test_bounds_hold_the_largest_cosine_and_decide(shape: tuple[int, int], scale: float) -> None:
    m, n = shape
    M = weight(m, n)
    changed = M + scale * torch.randn(m, 6) @ torch.randn(6, n) / math.sqrt(m * n) * 4
    X = torch.linalg.svd(changed).U[:, :10]
    bounds = largest_cosines(M, X, threshold=0.5)
    for found, cosine in zip(bounds, exact(M, X).tolist(), strict=True):
        assert found.low - 1e-3 <= cosine <= found.high + 1e-3
        assert (found.high < 0.5) == (cosine < 0.5)
        assert (found.low >= 0.5) == (cosine >= 0.5)


def test_a_weak_direction_of_the_matrix_is_found_too() -> None:
    M = weight(300, 300)
    U = torch.linalg.svd(M).U
    X = U[:, [150, 250, 290]]  # what is strong in M + D may be weak in M
    assert all(bound.low > 0.99 for bound in largest_cosines(M, X, threshold=0.5))
    mixed = (U[:, 150] + U[:, 250]).unsqueeze(1)
    (bound,) = largest_cosines(M, mixed, threshold=0.6)
    assert bound.low == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_what_a_tall_matrix_does_not_reach_is_no_direction_of_it() -> None:
    M = weight(300, 120)
    outside = torch.linalg.svd(M).U[:, -2:]
    assert all(bound.high < 0.1 for bound in largest_cosines(M, outside, threshold=0.5))


@given(st.integers(0, 10_000))
def test_bounds_hold_for_any_vector(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n, k = (int(torch.randint(1, 14, (), generator=generator)) for _ in range(3))
    M = torch.randn(m, n, generator=generator, dtype=torch.float64)
    X = torch.randn(m, k, generator=generator, dtype=torch.float64)
    bounds = largest_cosines(M, X, threshold=2.0)  # never decided below, so as far as it goes
    if m <= n:
        for found, cosine in zip(bounds, exact(M, X).tolist(), strict=True):
            assert found.low - 1e-3 <= cosine <= found.high + 1e-3


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_bounds_hold_wherever_the_search_ends(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    M = torch.diag(torch.linspace(0.2, 1.2, 60, dtype=torch.float64))
    X = torch.randn(60, 3, generator=generator, dtype=torch.float64).pow(5)  # a few entries stand out
    expected = (X.abs() / X.norm(dim=0)).amax(0)
    for found, cosine in zip(largest_cosines(M, X, threshold), expected.tolist(), strict=True):
        assert found.low - 1e-3 <= cosine <= found.high + 1e-4
        assert not found.low < threshold <= found.high


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="as many rows"):
        largest_cosines(torch.randn(4, 4), torch.randn(5, 1), 0.5)
    with pytest.raises(ConfigError, match="rank is 9, expected 1 to 4"):
        leading_svd(torch.randn(4, 6), 9)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        leading_svd(torch.full((4, 4), math.nan), 1)
