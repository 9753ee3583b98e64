from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, SIDES, gaussian, low_rank


class Blocks(linalg.RowBlocks):
    """A tensor in blocks of a few rows, which counts how often it is read."""

    def __init__(self, M: Tensor, rows: int = 7) -> None:
        self.shape = (M.shape[0], M.shape[1])
        self.M, self.rows, self.passes = M, rows, 0

    def blocks(self) -> Iterator[Tensor]:
        self.passes += 1
        yield from torch.split(self.M, self.rows)


def spectrum(m: int, n: int, S: Tensor, seed: int = 0) -> Tensor:
    """A matrix (m, n) with these singular values."""
    k = len(S)
    U = linalg.qr(gaussian(m, k, seed=seed)).Q
    V = linalg.qr(gaussian(n, k, seed=seed + 1)).Q
    return (U * S.double()) @ V.T


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (121, 7), (1, 5)])
def test_randomized_svd_is_nearly_the_best_and_its_error_is_true(shape: tuple[int, int]) -> None:
    M = spectrum(*shape, 0.8 ** torch.arange(min(shape)))
    rank = min(4, *shape)
    found, best = linalg.randomized_svd(M, rank, generator=seeded()), linalg.best_rank(M, rank)
    residual = (M - found.svd.reconstruct()).norm()
    assert found.frobenius_error.item() == pytest.approx(residual.item(), rel=1e-6, abs=1e-7)
    assert found.relative_error.item() == pytest.approx((residual / M.norm()).item(), rel=1e-6, abs=1e-7)
    assert residual <= best.frobenius_error * (1 + 1e-4) + 1e-12
    assert_close(found.svd.S, best.svd.S, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_randomized_svd_in_narrow_dtypes_computes_in_float32(dtype: torch.dtype) -> None:
    M = spectrum(80, 60, 0.7 ** torch.arange(60)).to(dtype)
    found = linalg.randomized_svd(M, 5, generator=seeded())
    truth = linalg.best_rank(M.double(), 5)
    assert found.svd.U.dtype == found.relative_error.dtype == torch.float32
    assert found.relative_error.item() == pytest.approx(truth.relative_error.item(), rel=1e-3)
    assert_close(found.svd.S.double(), truth.svd.S, rtol=1e-4, atol=1e-5)


def test_power_iterations_help_on_a_flat_spectrum() -> None:
    M = spectrum(150, 150, torch.linspace(1, 0.2, 150))
    errors = [
        linalg.randomized_svd(M, 5, oversampling=5, num_power_iters=q, generator=seeded()).relative_error.item()
        for q in (0, 1, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] - errors[2] > 1e-3


def test_reorthonormalising_keeps_singular_values_that_powers_would_lose() -> None:
    S = 10.0 ** -torch.arange(8)
    found = linalg.randomized_svd(spectrum(40, 30, S).float(), 6, num_power_iters=4, generator=seeded())
    # float32 knows an entry of size 1 to 6e-8; 1e-5 is still there to 1%. Without it, S^9 would be 1e-45.
    assert_close(found.svd.S, S[:6].float(), rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_error_of_a_matrix_of_that_very_rank_is_zero_to_rounding(dtype: torch.dtype) -> None:
    M = spectrum(200, 100, torch.ones(6)).to(dtype)
    assert linalg.randomized_svd(M, 6).relative_error < 16 * torch.finfo(dtype).eps


def test_generator_decides_the_result() -> None:
    M = gaussian(50, 40, seed=3)
    first, again, other = (linalg.randomized_svd(M, 3, 2, 0, seeded(seed)).svd.U for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_blocks_of_any_size_give_what_one_block_gives() -> None:
    M = spectrum(90, 60, 0.9 ** torch.arange(60))
    whole = linalg.randomized_svd(M, 5)
    for rows in (1, 13, 90, 1000):
        found = linalg.randomized_svd_of_blocks(Blocks(M, rows), rank=5)
        assert_close(found.svd.reconstruct(), whole.svd.reconstruct())
        assert_close(found.frobenius_error, whole.frobenius_error)


@pytest.mark.parametrize("num_power_iters", [0, 1, 2])
def test_a_rank_takes_two_passes_more_than_power_iterations(num_power_iters: int) -> None:
    M = Blocks(gaussian(80, 50, seed=0))
    linalg.randomized_svd_of_blocks(M, rank=3, num_power_iters=num_power_iters)
    assert M.passes == num_power_iters + 2


def test_a_matrix_with_few_columns_takes_one_pass_and_is_exact() -> None:
    M = Blocks(gaussian(80, 12, seed=0))
    found = linalg.randomized_svd_of_blocks(M, rank=3)
    assert M.passes == 1
    assert found.relative_error.item() == pytest.approx(linalg.best_rank(M.M, 3).relative_error.item(), rel=1e-12)


@given(SIDES, SIDES, st.sampled_from([0.0, 0.1, 0.5, 0.9]), SEEDS)
def test_an_error_of_small_matrices_is_met_by_the_smallest_rank(m: int, n: int, error: float, seed: int) -> None:
    M = gaussian(m, n, seed=seed)
    found = linalg.randomized_svd_of_blocks(Blocks(M), error=error)
    S = linalg.svd(M).S
    assert len(found.svd.S) == next(k for k in range(1, len(S) + 1) if S[k:].norm() / S.norm() <= max(error, 1e-14))
    assert found.relative_error.item() == pytest.approx(((M - found.svd.reconstruct()).norm() / M.norm()).item())


@pytest.mark.parametrize("limit", [{"error": 0.3}, {"error": 0.05}, {"energy": 0.9}, {"energy": 0.999}])
@pytest.mark.parametrize("shape", [(400, 300), (200, 500)])
def test_the_width_grows_until_the_error_is_met(limit: dict[str, float], shape: tuple[int, int]) -> None:
    S = torch.arange(1, 201) ** -1.0  # falls slowly: 0.05 needs 97 of 200
    M = spectrum(*shape, S)
    found = linalg.randomized_svd_of_blocks(Blocks(M, 64), **limit)
    allowed = limit.get("error", (1 - limit.get("energy", 1)) ** 0.5)
    residual = ((M - found.svd.reconstruct()).norm() / M.norm()).item()
    assert residual <= allowed
    assert found.relative_error.item() == pytest.approx(residual, rel=1e-6)
    best = next(k for k in range(1, 200) if S[k:].norm() / S.norm() <= allowed)
    assert best <= len(found.svd.S) <= best + 1 + best // 50


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [{"error": 0.0}, {"energy": 1.0}])
def test_a_low_rank_is_found_exactly(dtype: torch.dtype, limit: dict[str, float]) -> None:
    for rank in (1, 5, 40):
        M = low_rank(150, 120, rank, seed=rank).dense().to(dtype)
        found = linalg.randomized_svd_of_blocks(Blocks(M), **limit)
        assert len(found.svd.S) == rank
        assert found.relative_error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("ones", [0, 1, 31, 32, 33, 100])
def test_matrices_of_whole_numbers_where_nothing_rounds(ones: int) -> None:
    M = torch.diag((torch.arange(100) < ones).float())
    found = linalg.randomized_svd_of_blocks(Blocks(M), error=0)
    assert len(found.svd.S) == max(ones, 1)
    assert_close(found.svd.reconstruct(), M)
    assert_close(found.svd.Vh @ found.svd.Vh.T, torch.eye(max(ones, 1)))


def test_the_same_matrix_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    M = gaussian(60, 40, seed=1)
    torch.manual_seed(1)
    first = linalg.randomized_svd(M, 4)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(linalg.randomized_svd(M, 4).svd.U, first.svd.U)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


def test_limits_that_cannot_be_are_refused() -> None:
    M = Blocks(torch.ones(5, 3))
    with pytest.raises(ConfigError, match=r"rank is 4, expected 1 to 3 for a matrix of shape \(5, 3\)"):
        linalg.randomized_svd_of_blocks(M, rank=4)
    with pytest.raises(ConfigError, match="rank: expected a whole number of at least 1, found 0"):
        linalg.randomized_svd_of_blocks(M, rank=0)
    with pytest.raises(ConfigError, match="exactly one of rank, energy and error; found none"):
        linalg.randomized_svd_of_blocks(M)
    with pytest.raises(ConfigError, match=r"exactly one of .* found rank and error"):
        linalg.randomized_svd_of_blocks(M, rank=1, error=0.1)
    with pytest.raises(ConfigError, match=r"energy: expected a share above 0 and up to 1, found 1\.5"):
        linalg.randomized_svd_of_blocks(M, energy=1.5)
    with pytest.raises(ConfigError, match="oversampling is -1, expected 0 or more"):
        linalg.randomized_svd(M.M, 1, oversampling=-1)
    with pytest.raises(ConfigError, match="num_power_iters is -2, expected 0 or more"):
        linalg.randomized_svd(M.M, 1, num_power_iters=-2)


def test_blocks_that_are_no_such_matrix_are_refused() -> None:
    M = Blocks(torch.ones(20, 4))
    M.M[18, 2] = torch.nan
    with pytest.raises(ConfigError, match="M holds NaN or infinity"):
        linalg.randomized_svd_of_blocks(M, rank=1)
    M = Blocks(torch.ones(20, 4))
    M.shape = (21, 4)
    with pytest.raises(ConfigError, match="the blocks hold 20 rows, expected 21"):
        linalg.randomized_svd_of_blocks(M, rank=1)
    M.shape = (19, 4)
    with pytest.raises(ConfigError, match="the blocks hold 20 rows, expected 19"):
        linalg.randomized_svd_of_blocks(M, rank=1)
    M.shape = (20, 5)
    with pytest.raises(ConfigError, match=r"a block of shape \(7, 4\) is no block of rows of a matrix \(20, 5\)"):
        linalg.randomized_svd_of_blocks(M, rank=1)
