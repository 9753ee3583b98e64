from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, SIDES, gaussian, low_rank

Factorization = linalg.LU | linalg.QR | linalg.SVD | linalg.RankFactorization

FACTORIZATIONS: list[Callable[[Tensor], Factorization]] = [linalg.lu, linalg.qr, linalg.svd, linalg.rank_factorization]


def assert_orthonormal_columns(Q: Tensor) -> None:
    assert_close(Q.mT @ Q, torch.eye(Q.shape[-1], dtype=Q.dtype).expand(*Q.shape[:-2], -1, -1))


@given(SIDES, SIDES, st.integers(1, 15), SEEDS)
def test_each_multiplies_back_at_any_shape_and_rank(m: int, n: int, r: int, seed: int) -> None:
    M = low_rank(m, n, r, seed).dense()
    for factorize in FACTORIZATIONS:
        assert_close(factorize(M).reconstruct(), M, atol=1e-10, rtol=1e-10)


@given(SIDES, SIDES, SEEDS)
def test_each_factor_has_the_shape_and_structure_it_promises(m: int, n: int, seed: int) -> None:
    M, k = gaussian(m, n, seed=seed), min(m, n)

    lu = linalg.lu(M)
    assert (lu.P.shape, lu.L.shape, lu.U.shape) == ((m, m), (m, k), (k, n))
    assert_orthonormal_columns(lu.P)
    assert torch.equal(lu.L, lu.L.tril())
    assert torch.equal(lu.L.diagonal(), torch.ones(k, dtype=M.dtype))
    assert lu.L.abs().max() <= 1, "partial pivoting keeps the multipliers small"
    assert torch.equal(lu.U, lu.U.triu())

    qr = linalg.qr(M)
    assert (qr.Q.shape, qr.R.shape) == ((m, k), (k, n))
    assert_orthonormal_columns(qr.Q)
    assert torch.equal(qr.R, qr.R.triu())

    svd = linalg.svd(M)
    assert (svd.U.shape, svd.S.shape, svd.Vh.shape) == ((m, k), (k,), (k, n))
    assert_orthonormal_columns(svd.U)
    assert_orthonormal_columns(svd.Vh.mT)
    assert torch.equal(svd.S, svd.S.sort(descending=True).values)


@given(SIDES, SIDES, st.integers(1, 15), SEEDS)
def test_rank_factorization_has_two_factors_of_full_rank_and_equal_weight(m: int, n: int, r: int, seed: int) -> None:
    found = linalg.rank_factorization(low_rank(m, n, r, seed).dense())
    assert found.rank == min(m, n, r)
    assert (found.C.shape, found.F.shape) == ((m, found.rank), (found.rank, n))
    assert linalg.numerical_rank(found.C) == linalg.numerical_rank(found.F) == found.rank
    assert_close(found.C.T @ found.C, found.F @ found.F.T)


def test_rank_factorization_drops_what_is_below_the_tolerance() -> None:
    M = torch.diag(torch.tensor([1.0, 0.5, 1e-3]))
    assert linalg.rank_factorization(M).rank == 3
    assert linalg.rank_factorization(M, rtol=0.01).rank == 2


def test_rank_factorization_of_zero_has_no_columns() -> None:
    found = linalg.rank_factorization(torch.zeros(3, 2))
    assert found.rank == 0
    assert torch.equal(found.reconstruct(), torch.zeros(3, 2))


@pytest.mark.parametrize("factorize", [linalg.lu, linalg.qr, linalg.svd])
def test_batches_are_factorized_matrix_by_matrix(factorize: Callable[[Tensor], Factorization]) -> None:
    batch = gaussian(2, 5, 3, seed=0)
    assert_close(factorize(batch).reconstruct(), batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_half_precision_is_computed_and_returned_in_float32(
    factorize: Callable[[Tensor], Factorization], dtype: torch.dtype
) -> None:
    M = gaussian(7, 5, seed=0, dtype=dtype)
    found = factorize(M).reconstruct()
    assert found.dtype == torch.float32
    assert_close(found, M.float(), atol=1e-5, rtol=1e-5)


def test_rank_factorization_takes_one_matrix() -> None:
    with pytest.raises(ConfigError, match=r"shape \(2, 3, 3\), expected two dimensions"):
        linalg.rank_factorization(torch.ones(2, 3, 3))
