import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, SIDES, gaussian


def spectrum(m: int, n: int, S: Tensor, seed: int = 0) -> Tensor:
    """A matrix (m, n) with these singular values."""
    k = len(S)
    U = linalg.qr(gaussian(m, k, seed=seed)).Q
    V = linalg.qr(gaussian(n, k, seed=seed + 1)).Q
    return (U * S.double()) @ V.T


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_error_of_a_matrix_of_that_very_rank_is_zero_to_the_stated_resolution() -> None:
    M = spectrum(200, 100, torch.ones(6))
    assert linalg.randomized_svd(M, 6, generator=seeded()).relative_error < 5e-8
    assert linalg.randomized_svd(M.float(), 6, generator=seeded()).relative_error < 1e-3


def test_generator_decides_the_result() -> None:
    M = gaussian(50, 40, seed=3)
    first, again, other = (linalg.randomized_svd(M, 3, 2, 0, seeded(seed)).svd.U for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_options_that_cannot_be_are_refused() -> None:
    M = torch.ones(5, 3)
    for truncate in (linalg.best_rank, linalg.randomized_svd):
        for rank in (0, 4):
            with pytest.raises(ConfigError, match=rf"rank is {rank}, expected 1 to 3 for a matrix of shape \(5, 3\)"):
                truncate(M, rank)
    with pytest.raises(ConfigError, match="oversampling is -1, expected 0 or more"):
        linalg.randomized_svd(M, 1, oversampling=-1)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        linalg.randomized_svd(M / 0, 1)
