"""Changes beside the base's weights: table 7 of the LoRA paper and intruder dimensions, against dense arithmetic."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.analysis import intruders as module
from weft.analysis.against_base import against_base
from weft.analysis.intruders import Search, intruders
from weft.errors import ConfigError

from .adapters import adapter_of, low_rank


def test_numbers_are_those_of_the_matrices() -> None:
    W, D = torch.randn(12, 10), low_rank()
    (found,) = against_base(adapter_of({"a": D}), {"a": W}.__getitem__)
    U, _, Vh = torch.linalg.svd(D.dense())
    projected = torch.linalg.matrix_norm(U[:, :4].T @ W @ Vh[:4].T)
    assert found.weight_norm == pytest.approx(float(W.norm()), rel=1e-5)
    assert found.relative_norm == pytest.approx(float(D.dense().norm() / W.norm()), rel=1e-5)
    assert found.projected_norm == pytest.approx(float(projected), rel=1e-4)
    assert found.amplification == pytest.approx(float(D.dense().norm() / projected), rel=1e-4)
    assert found.chance_norm == pytest.approx(4 * float(W.norm()) / math.sqrt(120), rel=1e-5)
    assert found.intruders is None


def test_random_directions_hold_what_chance_gives() -> None:
    W = torch.randn(200, 300)
    changes = {str(i): low_rank(200, 300, 8) for i in range(20)}
    found = list(against_base(adapter_of(changes), lambda path: W))
    mean_square = sum(c.projected_norm**2 for c in found) / len(found)
    assert math.sqrt(mean_square) == pytest.approx(found[0].chance_norm, rel=0.1)


def test_a_change_along_the_weight_itself_is_not_amplified() -> None:
    W = low_rank().dense()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    D = weft.LowRank(U[:, :4] * S[:4], Vh[:4], 1.0)
    (found,) = against_base(adapter_of({"a": D}), lambda path: W, Search(4))
    assert found.amplification == pytest.approx(1, rel=1e-4)
    assert found.intruders is not None
    assert found.intruders.count == 0


def test_nothing_beside_nothing() -> None:
    zero = weft.LowRank(torch.zeros(6, 2), torch.randn(2, 5))
    (found,) = against_base(adapter_of({"a": zero}), lambda path: torch.randn(6, 5), Search(3))
    assert (found.relative_norm, found.projected_norm, found.amplification) == (0, 0, None)
    (found,) = against_base(adapter_of({"a": low_rank()}), lambda path: torch.zeros(12, 10))
    assert (found.weight_norm, found.relative_norm, found.amplification) == (0, None, None)


def test_weights_that_do_not_fit() -> None:
    adapter = adapter_of({"a": low_rank()})
    with pytest.raises(ConfigError, match=r"a: the weight is \(10, 12\) and its change \(12, 10\)"):
        list(against_base(adapter, lambda path: torch.randn(10, 12)))
    with pytest.raises(ConfigError, match="a: the base's weight holds NaN"):
        list(against_base(adapter, lambda path: torch.full((12, 10), math.nan)))


def weight(m: int, n: int) -> torch.Tensor:
    """Singular values that stand apart."""
    k = min(m, n)
    U, V = torch.linalg.qr(torch.randn(m, k)).Q, torch.linalg.qr(torch.randn(n, k)).Q
    return (U * torch.linspace(2, 1, k)) @ V.T


@given(st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_no_change_brings_no_intruder(seed: int, k: int, dense: bool) -> None:
    torch.manual_seed(seed)
    D = weft.LowRank(torch.zeros(24, 2), torch.randn(2, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DENSE", 512 if dense else 0)
        found = intruders(weight(24, 20), D, Search(k))
    assert (found.count, found.undecided, len(found.cosines)) == (0, 0, k)
    assert all(cosine.low == pytest.approx(1, abs=1e-3) for cosine in found.cosines)


@pytest.mark.parametrize("dense", [True, False], ids=["whole SVD", "Krylov"])
@pytest.mark.parametrize("shape", [(400, 400), (300, 420), (420, 300)])
def test_a_huge_change_in_new_directions_is_all_intruders(
    shape: tuple[int, int], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr(module, "DENSE", 0)
    W = weight(*shape)
    Q = torch.linalg.qr(torch.randn(shape[0], 4)).Q
    D = weft.LowRank(Q * 100 * torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.linalg.qr(torch.randn(shape[1], 4)).Q.T, 1.0)
    found = intruders(W, D, Search(4))
    assert (found.count, found.undecided) == (4, 0)
    exact = (torch.linalg.svd(W, full_matrices=False).U.T @ torch.linalg.svd(W + D.dense()).U[:, :4]).abs().amax(0)
    for bound, cosine in zip(found.cosines, exact.tolist(), strict=True):
        assert bound.low - 1e-3 <= cosine <= bound.high + 1e-3
    assert intruders(W, D, Search(6)).count == 4  # the two next are the base's own


def test_both_ways_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    W = weight(300, 260)
    for scale in (0.02, 0.05, 0.1, 0.3):
        D = weft.LowRank(torch.randn(300, 8) * scale, torch.randn(8, 260) / 4, 1.0)
        monkeypatch.setattr(module, "DENSE", 512)
        exact = intruders(W, D, Search(10, 0.5))
        monkeypatch.setattr(module, "DENSE", 0)
        found = intruders(W, D, Search(10, 0.5))
        assert found.undecided == 0
        assert found.count == exact.count
        assert found.singular_values == pytest.approx(exact.singular_values, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"), [((0, 0.5), "top is 0"), ((5, 0.0), "epsilon is 0.0"), ((5, 1.5), "1.5")]
)
def test_searches_that_cannot_be(values: tuple[int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Search(*values)
