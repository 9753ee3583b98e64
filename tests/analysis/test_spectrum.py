"""What singular values say: identities that hold for any."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.analysis.spectrum import Spectrum, cumulative_energy, rank_for, saturation

VALUES = st.lists(st.floats(0, 1e3), min_size=1, max_size=40).map(lambda values: sorted(values, reverse=True))


@given(VALUES)
def test_energies_add_up_to_one(values: list[float]) -> None:
    shares = cumulative_energy(values)
    assert list(shares) == sorted(shares)
    assert shares[-1] == (1 if values[0] > 0 else 0)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_rank_for_is_the_fewest_that_hold_the_energy(values: list[float], energy: float) -> None:
    k = rank_for(values, energy)
    if values[0] == 0:
        assert k == 0
        return
    total = sum(value**2 for value in values)
    assert sum(value**2 for value in values[:k]) >= energy * total * (1 - 1e-9)
    assert sum(value**2 for value in values[: k - 1]) <= energy * total * (1 + 1e-9)


@given(VALUES)
def test_saturation_is_a_share(values: list[float]) -> None:
    assert 0 <= saturation(values) <= 1


def test_saturation_of_full_and_of_spare_ranks() -> None:
    assert saturation([2.0] * 8) == 1
    assert saturation([3.0]) == 1
    assert saturation([1.0] * 6 + [0.0] * 2) == 0
    assert saturation([1.0, 1.0, 1.0, 0.5]) == pytest.approx(0.25 / 1 * 4 / 3.25)


def test_of_a_matrix_whose_rank_is_less_than_its_factors() -> None:
    B = torch.randn(20, 2) @ torch.randn(2, 6)
    D = weft.LowRank(B, torch.randn(6, 15))
    spectrum = Spectrum.of(D)
    assert spectrum.numerical_rank == 2
    assert len(spectrum.singular_values) == 6
    torch.testing.assert_close(
        torch.tensor(spectrum.singular_values[:2]), torch.linalg.svdvals(D.dense())[:2], rtol=1e-4, atol=0
    )
