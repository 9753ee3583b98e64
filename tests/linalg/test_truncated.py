import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, SIDES, gaussian


@given(SIDES, SIDES, st.data(), SEEDS)
def test_errors_are_the_distances_from_the_matrix(m: int, n: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    M = gaussian(m, n, seed=seed)
    best = linalg.best_rank(M, rank)
    residual = M - best.svd.reconstruct()
    assert best.svd.S.shape == (rank,)
    assert best.spectral_error.item() == pytest.approx(torch.linalg.matrix_norm(residual, 2).item(), abs=1e-12)
    assert best.frobenius_error.item() == pytest.approx(residual.norm().item(), abs=1e-12)
    assert best.relative_error.item() == pytest.approx((residual.norm() / M.norm()).item(), abs=1e-12)


@given(st.integers(2, 10), st.integers(2, 10), SEEDS)
def test_no_other_matrix_of_the_rank_is_nearer(m: int, n: int, seed: int) -> None:
    M = gaussian(m, n, seed=seed)
    best = linalg.best_rank(M, 1)
    # The best rival on a random column space, and one a small step away from the optimum.
    q = linalg.qr(gaussian(m, 1, seed=seed + 1)).Q
    step = linalg.qr(best.svd.U + 0.01 * q).Q
    for basis in (q, step):
        assert (M - basis @ (basis.T @ M)).norm() >= best.frobenius_error - 1e-12


def test_textbook_example() -> None:
    best = linalg.best_rank(torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64), 1)
    assert_close(best.svd.reconstruct(), torch.tensor([[1.5, 1.5], [4.5, 4.5]], dtype=torch.float64))
    assert best.spectral_error.item() == pytest.approx(5**0.5)


def test_best_rank_of_a_batch_and_of_zero() -> None:
    batch = gaussian(3, 6, 4, seed=0)
    best = linalg.best_rank(batch, 2)
    assert best.relative_error.shape == best.spectral_error.shape == (3,)
    assert best.spectral_error[1].item() == pytest.approx(linalg.best_rank(batch[1], 2).spectral_error.item())
    assert linalg.best_rank(torch.zeros(3, 3), 1).relative_error.item() == 0


def test_ranks_that_cannot_be_are_refused() -> None:
    for rank in (0, 4):
        with pytest.raises(ConfigError, match=rf"rank is {rank}, expected 1 to 3 for a matrix of shape \(5, 3\)"):
            linalg.best_rank(torch.ones(5, 3), rank)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        linalg.best_rank(torch.ones(5, 3) / 0, 1)
