import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, SIDES, gaussian, low_rank


@given(SIDES, SIDES, st.integers(1, 15), SEEDS)
def test_numerical_rank_of_a_product_is_its_inner_size(m: int, n: int, r: int, seed: int) -> None:
    M = low_rank(m, n, r, seed)
    assert linalg.numerical_rank(M.dense()) == linalg.numerical_rank(M) == min(m, n, r)


def test_numerical_rank_counts_above_the_relative_tolerance() -> None:
    M = torch.diag(torch.tensor([100.0, 2.0, 0.5]))
    assert linalg.numerical_rank(M, rtol=0.01) == 2
    assert linalg.numerical_rank(M, rtol=0.001) == 3


def test_default_tolerance_is_that_of_the_dtype_computed_in() -> None:
    M = torch.diag(torch.tensor([1.0, 1e-10], dtype=torch.float64))
    assert linalg.numerical_rank(M) == 2
    assert linalg.numerical_rank(M.float()) == 1
    rounded = low_rank(20, 20, 3, seed=0).dense(torch.bfloat16)
    assert linalg.numerical_rank(rounded) == 20
    assert linalg.numerical_rank(rounded, rtol=20 * torch.finfo(torch.bfloat16).eps) == 3


@given(SIDES, SIDES, SEEDS)
def test_stable_and_effective_rank_lie_between_one_and_the_rank(m: int, n: int, seed: int) -> None:
    M = gaussian(m, n, seed=seed)
    for measure in (linalg.stable_rank, linalg.effective_rank):
        assert 1 - 1e-12 <= measure(M).item() <= min(m, n) + 1e-12


def test_stable_and_effective_rank_by_their_formulas() -> None:
    M = torch.diag(torch.tensor([4.0, 2.0, 2.0, 0.0]))
    assert linalg.stable_rank(M).item() == pytest.approx(24 / 16)
    assert linalg.effective_rank(M).item() == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)))
    assert linalg.stable_rank(torch.eye(5)).item() == pytest.approx(5)
    assert linalg.effective_rank(torch.eye(5)).item() == pytest.approx(5)


@given(SIDES, SIDES, st.integers(1, 15), SEEDS)
def test_factors_and_dense_matrix_agree(m: int, n: int, r: int, seed: int) -> None:
    M = low_rank(m, n, r, seed, scaling=-0.5)
    for measure in (linalg.stable_rank, linalg.effective_rank):
        assert measure(M).item() == pytest.approx(measure(M.dense()).item(), rel=1e-9)


def test_every_matrix_of_a_batch_is_measured_by_itself() -> None:
    batch = gaussian(2, 3, 6, 4, seed=0)
    for measure in (linalg.numerical_rank, linalg.stable_rank, linalg.effective_rank):
        found = measure(batch)
        assert found.shape == (2, 3)
        assert found[1, 2].item() == pytest.approx(measure(batch[1, 2]).item())


def test_zero_matrix_has_rank_zero_by_every_measure() -> None:
    for zero in (torch.zeros(3, 4), linalg.LowRank(torch.zeros(3, 2), torch.ones(2, 4))):
        for measure in (linalg.numerical_rank, linalg.stable_rank, linalg.effective_rank):
            assert measure(zero).item() == 0


def test_extreme_magnitudes_do_not_overflow() -> None:
    huge = torch.eye(3) * 1e30
    assert linalg.stable_rank(huge).item() == pytest.approx(3)
    assert linalg.effective_rank(huge).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("M", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int64), "torch.int64.*exact_rank"),
        (torch.ones(3), r"shape \(3,\), expected two dimensions or more"),
        (torch.ones(0, 3), "at least one row"),
        (torch.tensor([[1.0, math.nan]]), "NaN or infinity"),
        ([[1.0]], "torch.Tensor, found list"),
    ],
)
def test_what_is_not_a_matrix_is_refused(M: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        linalg.numerical_rank(M)  # type: ignore[arg-type]
