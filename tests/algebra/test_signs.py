import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.algebra.signs import disjoint_mean

from . import dense

INTEGERS = st.integers(-4, 4).map(float)
WEIGHTS = st.sampled_from([1.0, 0.5, 2.0, 0.25, -1.0, 0.0])


def elect(*entries: float, weights: tuple[float, ...] | None = None) -> float:
    """What becomes of one entry of several changes; the weights multiply it first."""
    weights = weights or (1.0,) * len(entries)
    values = [torch.tensor([[w * entry]]) for w, entry in zip(weights, entries, strict=True)]
    return disjoint_mean(values, weights).item()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((3.0,), 3.0),
        ((-3.0,), -3.0),
        ((0.0,), 0.0),
        ((1.0, 3.0), 2.0),  # both agree
        ((1.0, -3.0), -3.0),  # the heavier one, undiminished
        ((1.0, 1.0, -3.0), -3.0),  # one against two: magnitudes vote, not heads
        ((2.0, 2.0, -3.0), 2.0),
        ((4.0, 0.0, 0.0), 4.0),  # what was trimmed away does not count in the mean
        ((2.0, -2.0), 0.0),  # a balance: no sign is elected
        ((2.0, -1.0, -1.0), 0.0),
    ],
)
def test_by_hand(entries: tuple[float, ...], expected: float) -> None:
    assert elect(*entries) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1.0, 1.0), -3.0),
        ((4.0, 1.0), 2.0),  # 8 against 3
        ((0.4, 0.1), 2.0),  # only the ratios matter
        ((1.0, -1.0), 2.5),  # the second one turned round: 2 and 3
        ((3.0, -1.0), 2.25),  # (3 * 2 + 1 * 3) / 4
        ((0.0, 1.0), -3.0),
        ((0.0, 0.0), 0.0),
    ],
)
def test_weights_by_hand(weights: tuple[float, ...], expected: float) -> None:
    assert elect(2.0, -3.0, weights=weights) == pytest.approx(expected, rel=1e-6)


@st.composite
def ballots(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[float]]:
    count, size = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    weights = draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    rows = st.lists(INTEGERS, min_size=size, max_size=size)
    return [w * torch.tensor([draw(rows)], dtype=torch.float64) for w in weights], weights


@settings(max_examples=50)
@given(ballots())
def test_equals_the_dense_formula(ballot: tuple[list[torch.Tensor], list[float]]) -> None:
    values, weights = ballot
    torch.testing.assert_close(disjoint_mean(values, weights), dense.disjoint_mean(values, weights))


@settings(max_examples=50)
@given(ballots())
def test_order_does_not_matter_and_signs_are_alike(ballot: tuple[list[torch.Tensor], list[float]]) -> None:
    values, weights = ballot
    merged = disjoint_mean(values, weights)
    torch.testing.assert_close(disjoint_mean(values[::-1], weights[::-1]), merged)
    torch.testing.assert_close(disjoint_mean([-value for value in values], weights), -merged)


@given(st.lists(INTEGERS, min_size=1, max_size=6), st.lists(st.sampled_from([0.25, 1.0, 2.0]), min_size=1, max_size=4))
def test_agreement_is_kept(row: list[float], weights: list[float]) -> None:
    value = torch.tensor([row], dtype=torch.float64)
    torch.testing.assert_close(disjoint_mean([w * value for w in weights], weights), value)


def test_tiny_values_vote_too() -> None:
    assert elect(1e-30, -1e-31, -1e-31) == pytest.approx(1e-30, rel=1e-6)
