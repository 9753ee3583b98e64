import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.algebra.rows import Term, row_slices
from weft.algebra.trim import Trimmed, kth_magnitude, select

from .dense import trimmed


def term(B: torch.Tensor, A: torch.Tensor) -> Term:
    return Term(place=0, weight=1.0, B=B, A=A)


def gaussian(m: int, n: int, r: int, seed: int = 0) -> Term:
    generator = torch.Generator().manual_seed(seed)
    return term(torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator))


def whole(matrix: Term | Trimmed, shape: tuple[int, int]) -> torch.Tensor:
    return torch.cat([matrix.read(rows) for rows in row_slices(shape)])


@pytest.mark.parametrize("density", [1e-6, 0.001, 0.2, 0.5, 0.937, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 123), (700, 1001), (3, 300_000)])
def test_keeps_the_largest_share_exactly(shape: tuple[int, int], density: float) -> None:
    T = gaussian(*shape, r=3)
    M = whole(T, shape)
    found = whole(Trimmed(T, density), shape)
    assert torch.equal(found, trimmed(M, density))
    assert found.count_nonzero() == max(1, round(density * M.numel()))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_kth_magnitude_with_many_equal_entries(m: int, n: int, data: st.DataObject) -> None:
    small = st.integers(-2, 2).map(float)
    B = torch.tensor(data.draw(st.lists(small, min_size=m, max_size=m))).unsqueeze(1)
    A = torch.tensor(data.draw(st.lists(small, min_size=n, max_size=n))).unsqueeze(0)
    k = data.draw(st.integers(1, m * n))
    expected = (B @ A).abs().flatten().sort(descending=True).values[k - 1].item()
    assert kth_magnitude(term(B, A), k) == expected


@pytest.mark.parametrize("share_of_rows", [0.0, 0.05, 0.3])
def test_a_matrix_that_is_mostly_zero(share_of_rows: float) -> None:
    T = gaussian(1000, 500, r=4)
    T.B[round(share_of_rows * 1000) :] = 0
    M = whole(T, (1000, 500))
    assert torch.equal(whole(Trimmed(T, 0.2), (1000, 500)), trimmed(M, 0.2))


def test_float64_is_trimmed_in_float64() -> None:
    T = gaussian(40, 30, r=2)
    T = term(T.B.double(), T.A.double())
    found = whole(Trimmed(T, 0.3), (40, 30))
    assert found.dtype == torch.float64
    assert torch.equal(found, trimmed(T.B @ T.A, 0.3))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 600), st.floats(0, 8), st.floats(0, 3))
def test_a_sample_that_misleads_changes_nothing(data: st.DataObject, k: int, shift: float, width: float) -> None:
    T = gaussian(20, 30, r=2, seed=data.draw(st.integers(0, 9)))
    magnitudes = whole(T, (20, 30)).abs().flatten().sort(descending=True).values
    sample = shift + width * torch.linspace(1, 0, data.draw(st.sampled_from([1, 10, 1000])))
    assert select(T, k, sample) == magnitudes[k - 1].item()
