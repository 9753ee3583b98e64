import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weft import linalg
from weft.errors import ConfigError

from .matrices import SEEDS, gaussian


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, math.pi / 4, 1.5, math.pi / 2])
def test_angle_between_two_lines_is_accurate_when_small_and_when_large(angle: float) -> None:
    u = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    v = torch.tensor([[math.cos(angle)], [math.sin(angle)], [0.0]], dtype=torch.float64)
    assert linalg.principal_angles(u, -3 * v).item() == pytest.approx(angle, rel=1e-12, abs=1e-15)


@given(st.integers(1, 5), st.integers(1, 5), SEEDS)
def test_principal_angles_depend_on_the_spans_alone_and_are_symmetric(p: int, q: int, seed: int) -> None:
    U, V = gaussian(9, p, seed=seed), gaussian(9, q, seed=seed + 1)
    angles = linalg.principal_angles(U, V)
    assert angles.shape == (min(p, q),)
    assert torch.equal(angles, angles.sort().values)
    assert_close(angles, linalg.principal_angles(V, U), atol=1e-9, rtol=0)
    mixed = U @ (gaussian(p, p, seed=seed + 2) + 5 * torch.eye(p, dtype=U.dtype))
    assert_close(angles, linalg.principal_angles(mixed, V), atol=1e-8, rtol=0)
    # The definition: the cosines are the singular values of Q_U^T Q_V.
    cosines = torch.linalg.svdvals(linalg.qr(U).Q.T @ linalg.qr(V).Q)
    assert_close(angles.cos(), cosines, atol=1e-9, rtol=0)


def test_nested_spans_have_only_zero_angles() -> None:
    V = gaussian(20, 6, seed=0)
    assert linalg.principal_angles(V[:, :2] @ gaussian(2, 2, seed=1), V).max() < 1e-13


@given(st.integers(1, 6), st.integers(1, 6), st.data(), SEEDS)
def test_similarity_is_the_formula_of_the_paper(r1: int, r2: int, data: st.DataObject, seed: int) -> None:
    A1, A2 = gaussian(r1, 8, seed=seed), gaussian(r2, 8, seed=seed + 1)
    i, j = data.draw(st.integers(1, r1)), data.draw(st.integers(1, r2))
    V1 = torch.linalg.svd(A1, full_matrices=False).Vh.T[:, :i]
    V2 = torch.linalg.svd(A2, full_matrices=False).Vh.T[:, :j]
    expected = (V1.T @ V2).norm().item() ** 2 / min(i, j)
    assert linalg.subspace_similarity(A1, A2, i, j).item() == pytest.approx(expected, abs=1e-12)
    grid = linalg.subspace_similarity_grid(A1, A2)
    assert grid.shape == (r1, r2)
    assert grid[i - 1, j - 1].item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 6), SEEDS)
def test_a_matrix_is_wholly_similar_to_itself(r: int, seed: int) -> None:
    A = gaussian(r, 8, seed=seed)
    assert_close(linalg.subspace_similarity_grid(A, A), torch.ones(r, r, dtype=A.dtype))


def test_similarity_of_half_precision_factors() -> None:
    A = gaussian(4, 64, seed=0, dtype=torch.bfloat16)
    other = torch.cat([A, gaussian(2, 64, seed=1, dtype=torch.bfloat16)])
    assert linalg.subspace_similarity(A, other, 4, 6).item() == pytest.approx(1, abs=1e-5)


def test_spaces_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(4, 1\) and V has shape \(5, 1\)"):
        linalg.principal_angles(torch.ones(4, 1), torch.ones(5, 1))
    with pytest.raises(ConfigError, match=r"\(1, 4\) and A2 has shape \(1, 5\)"):
        linalg.subspace_similarity(torch.ones(1, 4), torch.ones(1, 5), 1, 1)
    with pytest.raises(ConfigError, match="i is 3, expected 1 to 2"):
        linalg.subspace_similarity(torch.eye(2), torch.eye(2), 3, 1)
    with pytest.raises(ConfigError, match="j is 0, expected 1 to 2"):
        linalg.subspace_similarity(torch.eye(2), torch.eye(2), 1, 0)


@pytest.mark.parametrize("U", [torch.ones(4, 2), torch.zeros(4, 1), torch.randn(2, 3)])
def test_dependent_columns_are_refused(U: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"U of shape .* has linearly dependent columns"):
        linalg.principal_angles(U, torch.eye(len(U))[:, :1])
