import copy
import dataclasses
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError
from weft.linalg import LowRank

from .matrices import gaussian, low_rank, low_ranks

SCALARS = st.sampled_from([2, -1, 0.5, -0.3, 0])


@given(low_ranks())
def test_stands_for_the_scaled_product(values: list[LowRank]) -> None:
    (M,) = values
    assert M.shape == (M.B.shape[0], M.A.shape[1])
    assert M.rank == M.A.shape[0]
    assert_close(M.dense(), M.scaling * M.B @ M.A)
    assert_close(M.T.dense(), M.dense().T)
    assert_close((-M).dense(), -M.dense())


@given(low_ranks(), SCALARS)
def test_multiplies_with_scalars_on_both_sides(values: list[LowRank], c: float) -> None:
    (M,) = values
    assert_close((c * M).dense(), c * M.dense())
    assert_close((M * c).dense(), c * M.dense())
    if c:
        assert_close((M / c).dense(), M.dense() / c)
    assert (c * M).B is M.B, "only the scaling changes"


@given(low_ranks(count=3))
def test_sums_are_exact_with_mixed_ranks_and_scalings(values: list[LowRank]) -> None:
    a, b, c = values
    assert_close((a + b).dense(), a.dense() + b.dense())
    assert_close((a - b).dense(), a.dense() - b.dense())
    total = a.concat(b, c)
    assert total.rank == a.rank + b.rank + c.rank
    assert_close(total.dense(), a.dense() + b.dense() + c.dense())


def test_sum_of_one_scaling_keeps_the_factors_bit_for_bit() -> None:
    a, b = low_rank(5, 4, 2, 0, 0.3), low_rank(5, 4, 3, 1, -0.3)
    total = a + b
    assert total.scaling == 0.3
    assert torch.equal(total.B, torch.cat([a.B, -b.B], dim=1))
    assert torch.equal(total.A, torch.cat([a.A, b.A]))


@given(low_ranks(count=2))
def test_norm_and_inner_product_are_those_of_the_dense_matrices(values: list[LowRank]) -> None:
    a, b = values
    size = a.dense().norm().item() * b.dense().norm().item()
    assert a.norm().item() == pytest.approx(a.dense().norm().item(), rel=1e-12, abs=1e-13)
    assert a.inner(b).item() == pytest.approx((a.dense() * b.dense()).sum().item(), abs=1e-12 * (1 + size))


@given(low_ranks())
def test_svd_and_singular_values_are_those_of_the_dense_matrix(values: list[LowRank]) -> None:
    (M,) = values
    k = min(M.rank, *M.shape)
    svd = M.svd()
    assert (svd.U.shape, svd.S.shape, svd.Vh.shape) == ((M.shape[0], k), (k,), (k, M.shape[1]))
    assert_close(svd.reconstruct(), M.dense(), atol=1e-11, rtol=0)
    assert_close(svd.U.T @ svd.U, torch.eye(k, dtype=torch.float64))
    assert_close(svd.Vh @ svd.Vh.T, torch.eye(k, dtype=torch.float64))
    assert_close(M.singular_values(), torch.linalg.svdvals(M.dense())[:k], atol=1e-11, rtol=0)


@given(low_ranks())
def test_balanced_is_the_same_matrix_with_equal_grams(values: list[LowRank]) -> None:
    (M,) = values
    balanced = M.balanced()
    assert balanced.scaling == 1
    assert_close(balanced.dense(), M.dense(), atol=1e-11, rtol=0)
    assert_close(balanced.B.T @ balanced.B, balanced.A @ balanced.A.T, atol=1e-11, rtol=0)


@given(low_ranks(), st.integers(1, 16))
def test_truncating_to_a_rank_is_eckart_young(values: list[LowRank], rank: int) -> None:
    (M,) = values
    found, error = M.truncate(rank=rank)
    assert found.rank == min(rank, M.rank, *M.shape)
    best = linalg.best_rank(M.dense(), found.rank)
    assert error == pytest.approx(best.relative_error.item(), abs=1e-12)
    assert (M - found).norm().item() == pytest.approx(best.frobenius_error.item(), abs=1e-11)


@given(low_ranks(), st.floats(0.01, 1.0))
def test_truncating_to_an_energy_keeps_the_fewest_that_hold_it(values: list[LowRank], energy: float) -> None:
    (M,) = values
    found, error = M.truncate(energy=energy)
    assert error**2 <= 1 - energy + 1e-12
    if found.rank > 1:
        assert 1 - M.truncate(rank=found.rank - 1).relative_error ** 2 < energy


@given(low_ranks(), st.floats(0.0, 0.99))
def test_truncating_to_an_error_keeps_the_fewest_within_it(values: list[LowRank], allowed: float) -> None:
    (M,) = values
    found, error = M.truncate(error=allowed)
    assert error <= allowed
    if found.rank > 1:
        assert M.truncate(rank=found.rank - 1).relative_error > allowed


def test_truncating_by_known_singular_values() -> None:
    M = LowRank(torch.eye(4), torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0])), 3.0)  # squares: 16, 4, 4, 1
    assert M.truncate(rank=2).relative_error == pytest.approx((5 / 25) ** 0.5)
    assert M.truncate(energy=0.95).value.rank == 3
    assert M.truncate(energy=0.97).value.rank == 4
    assert M.truncate(error=0.21).value.rank == 3
    assert M.truncate(error=0.19).value.rank == 4


def test_zero_truncates_to_rank_one_at_no_cost() -> None:
    zero = LowRank(torch.zeros(4, 3), torch.ones(3, 5))
    for found in (zero.truncate(rank=2), zero.truncate(energy=0.9), zero.truncate(error=0.0)):
        assert found.relative_error == 0
        assert torch.equal(found.value.dense(), torch.zeros(4, 5))
    assert zero.truncate(energy=0.9).value.rank == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "exactly one of rank, energy and error; found none"),
        ({"rank": 2, "error": 0.1}, "found rank and error"),
        ({"rank": 0}, "rank: expected a whole number of at least 1, found 0"),
        ({"energy": 0.0}, "energy: expected a share above 0 and up to 1, found 0.0"),
        ({"error": 1.0}, "error: expected a relative error from 0 up to, but not, 1, found 1.0"),
    ],
)
def test_truncation_takes_one_sensible_limit(choice: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        low_rank(4, 4, 3, 0).truncate(**choice)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-2)])
def test_norm_of_the_difference_of_nearly_equal_values_is_not_noise(dtype: torch.dtype, rtol: float) -> None:
    a = low_rank(64, 48, 8, seed=0, scaling=2.0, dtype=dtype)
    nearly = LowRank(a.B + 2.0**-14 * gaussian(64, 8, seed=5, dtype=dtype), a.A, a.scaling)
    truth = (nearly.to(dtype=torch.float64).dense() - a.to(dtype=torch.float64).dense()).norm().item()
    assert (nearly - a).norm().item() == pytest.approx(truth, rel=rtol)
    assert (nearly - a).singular_values()[0].item() <= truth * (1 + rtol)


def test_difference_of_equal_values_is_zero_to_rounding_of_their_size() -> None:
    a = low_rank(64, 48, 8, seed=0, dtype=torch.float32)
    assert (a - a).norm() < 1e-6 * a.norm()


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 3, 4, 5)])
def test_applies_to_tensors_from_both_sides(shape: tuple[int, ...]) -> None:
    M = low_rank(6, 4, 2, seed=0, scaling=0.7)
    x = gaussian(*shape, seed=3)
    assert_close(M @ x, M.dense() @ x)
    y = gaussian(*shape[:-2], 5, 6, seed=4)
    assert_close(y @ M, y @ M.dense())
    assert_close(y[..., 0, :] @ M, y[..., 0, :] @ M.dense())


def test_applying_answers_in_the_dtype_of_the_tensor() -> None:
    M = low_rank(6, 4, 2, seed=0, dtype=torch.float32)
    x = gaussian(4, 3, seed=1, dtype=torch.bfloat16)
    assert (M @ x).dtype == torch.bfloat16
    assert_close((M @ x).float(), M.dense() @ x.float(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
def test_narrow_factors_are_computed_in_float32_and_rounded_once(dtype: torch.dtype, tolerance: float) -> None:
    a, b = low_rank(33, 17, 5, 0, 0.7, dtype), low_rank(33, 17, 3, 2, 1.3, dtype)
    exact = a.to(dtype=torch.float64).dense() + b.to(dtype=torch.float64).dense()
    total = a + b
    assert total.dtype == total.truncate(rank=4).value.dtype == torch.float32
    assert_close(total.dense().double(), exact, atol=tolerance * exact.abs().max().item(), rtol=0)
    assert total.norm().item() == pytest.approx(exact.norm().item(), rel=tolerance)
    assert_close(total.singular_values()[:8].double(), torch.linalg.svdvals(exact)[:8], rtol=tolerance, atol=1e-4)
    assert a.dense().dtype == dtype
    assert torch.equal(a.dense(), a.dense(torch.float32).to(dtype))
    rounded = total.to(dtype=dtype)
    assert rounded.dtype == rounded.A.dtype == rounded.B.dtype == dtype


def test_sum_of_two_dtypes_is_in_the_wider() -> None:
    narrow, wide = low_rank(4, 4, 2, 0, dtype=torch.bfloat16), low_rank(4, 4, 2, 1, dtype=torch.float64)
    assert (narrow + wide).dtype == (wide + narrow).dtype == torch.float64


def test_gradients_reach_the_factors() -> None:
    B, A = gaussian(5, 2, seed=0).requires_grad_(), gaussian(2, 4, seed=1).requires_grad_()
    other, x = low_rank(5, 4, 3, 7), gaussian(4, 3, seed=2)
    for f in (
        lambda B, A: LowRank(B, A, 0.5).norm(),
        lambda B, A: LowRank(B, A, 0.5).inner(other),
        lambda B, A: (LowRank(B, A, 0.5) - other).dense(),
        lambda B, A: LowRank(B, A, 0.5) @ x,
        lambda B, A: LowRank(B, A, 0.5).singular_values(),
    ):
        assert torch.autograd.gradcheck(f, (B, A))


def test_squared_norm_by_inner_product_has_a_gradient_at_zero() -> None:
    B, A = torch.zeros(5, 2, requires_grad=True), torch.randn(2, 4)
    M = LowRank(B, A)
    (gradient,) = torch.autograd.grad(M.inner(M), B)
    assert torch.equal(gradient, torch.zeros(5, 2))


def test_is_a_frozen_value_compared_by_identity() -> None:
    M = low_rank(3, 3, 1, 0)
    twin = LowRank(M.B, M.A, M.scaling)
    assert twin not in [M]
    assert len({M, M, twin}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        M.scaling = 2.0  # type: ignore[misc]


def test_survives_copying_and_pickling() -> None:
    M = low_rank(3, 4, 2, 0, 0.5)
    for twin in (copy.deepcopy(M), pickle.loads(pickle.dumps(M))):
        assert torch.equal(twin.dense(), M.dense())


def test_shows_its_shape_and_not_its_numbers() -> None:
    M = low_rank(3, 4, 2, 0, 0.5, torch.float32)
    assert repr(M) == "LowRank(3x4, rank=2, scaling=0.5, dtype=torch.float32, device=cpu)"


@pytest.mark.parametrize(
    ("B", "A", "scaling", "message"),
    [
        (torch.ones(8, 4), torch.ones(3, 6), 1.0, r"B has shape \(8, 4\) and A has shape \(3, 6\).*same r"),
        (torch.ones(8, 0), torch.ones(0, 6), 1.0, r"B has shape \(8, 0\), expected at least one"),
        (torch.ones(8), torch.ones(1, 6), 1.0, r"B has shape \(8,\), expected two dimensions"),
        (torch.ones(8, 1), torch.ones(1, 6).double(), 1.0, "B is torch.float32 on cpu and A is torch.float64"),
        (torch.ones(8, 1), torch.ones(1, 6).long(), 1.0, "A has dtype torch.int64"),
        (torch.ones(8, 1), torch.ones(1, 6), math.inf, "scaling is inf, expected a finite Python float"),
        (torch.ones(8, 1), torch.ones(1, 6), torch.ones(()), "scaling is tensor"),
    ],
)
def test_factors_that_do_not_fit_are_refused(B: torch.Tensor, A: torch.Tensor, scaling: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LowRank(B, A, scaling)


def test_operands_that_do_not_fit_are_refused_with_both_shapes() -> None:
    a, b = low_rank(6, 4, 2, 0), low_rank(4, 6, 2, 0)
    for operation in (a.__add__, a.__sub__, a.concat, a.inner):
        with pytest.raises(ConfigError, match=r"\(6, 4\) and \(4, 6\)"):
            operation(b)
    with pytest.raises(ConfigError, match=r"shape \(6, 2\).*LowRank of shape \(6, 4\): its dimension -2 must be 4"):
        a @ torch.ones(6, 2)
    with pytest.raises(ConfigError, match="its dimension -1 must be 6"):
        torch.ones(2, 4) @ a
    with pytest.raises(ConfigError, match=r"dtype torch\.int64"):
        a @ torch.ones(4, 2, dtype=torch.int64)


def test_python_refuses_what_has_no_meaning() -> None:
    a = low_rank(4, 4, 2, 0)
    for meaningless in (
        lambda: a + 1,  # type: ignore[operator]
        lambda: a - torch.ones(4, 4),  # type: ignore[operator]
        lambda: a * a,  # type: ignore[operator]
        lambda: "x" * a,  # type: ignore[operator]
        lambda: a @ a,  # type: ignore[operator]
    ):
        with pytest.raises(TypeError):
            meaningless()
    with pytest.raises(ZeroDivisionError):
        a / 0


def test_nothing_forms_the_dense_matrix() -> None:
    a, b = low_rank(200_000, 150_000, 2, 0, 0.5, torch.float32), low_rank(200_000, 150_000, 1, 5, 2.0, torch.float32)
    total = a + b  # dense, it would be 120 GB
    assert total.inner(total).sqrt().item() == pytest.approx(total.norm().item(), rel=1e-4)
    found, error = total.truncate(rank=2)
    assert (total - found).norm().item() == pytest.approx(error * total.norm().item(), rel=1e-3)
    assert (total @ torch.ones(150_000)).shape == (200_000,)


def test_values_that_are_not_numbers_are_refused_by_what_would_hide_them() -> None:
    broken = LowRank(torch.full((3, 1), math.nan), torch.ones(1, 3))
    for ask in (broken.svd, broken.singular_values, broken.balanced, lambda: broken.truncate(rank=1)):
        with pytest.raises(ConfigError, match=r"LowRank\(3x3.* holds NaN or infinity"):
            ask()
    assert broken.norm().isnan()
