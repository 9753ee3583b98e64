"""Adapters add up as the changes of the weights do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import weft
from weft import Adapter, Layout, LoRAConfig, LowRank
from weft.errors import BaseMismatchError, ConfigError

from .values import adapter, adapters, dense_sum

WEIGHTS = st.lists(st.sampled_from([1.0, -1.0, 0.3, 0.0, 2.5]), min_size=3, max_size=3)


def assert_stands_for(found: Adapter, expected: dict[str, torch.Tensor]) -> None:
    assert found.factors.keys() == expected.keys()
    for path, matrix in expected.items():
        assert_close(found.factors[path].dense(torch.float64), matrix, rtol=1e-11, atol=1e-11)


@given(adapters(3), WEIGHTS)
def test_a_weighted_sum_is_that_of_the_dense_changes(values: list[Adapter], weights: list[float]) -> None:
    assert_stands_for(weft.weighted_sum(values, weights), dense_sum(values, weights))


@given(adapters(2))
def test_operators_are_weighted_sums(values: list[Adapter]) -> None:
    a, b = values
    for found, weights in ((a + b, (1, 1)), (a - b, (1, -1)), (0.5 * a - b / 4, (0.5, -0.25)), (-a + b * 2, (-1, 2))):
        assert_stands_for(found, dense_sum(values, weights))


@given(adapters(2))
def test_inner_and_norm_are_those_of_the_dense_changes(values: list[Adapter]) -> None:
    a, b = (dense_sum([value], [1.0]) for value in values)
    expected = sum(float((a[path] * b[path]).sum()) for path in a.keys() & b.keys())
    assert math.isclose(weft.inner(*values), expected, rel_tol=1e-10, abs_tol=1e-9)
    assert math.isclose(values[0].norm(), math.hypot(*(float(D.norm()) for D in a.values())), rel_tol=1e-12)


def test_the_norm_of_a_small_difference_survives_float32() -> None:
    a = adapter(0, {"layers.0.q": 4}, dtype=torch.float32)
    nudged = a + 1e-5 * adapter(1, {"layers.0.q": 1}, dtype=torch.float32)
    expected = 1e-5 * adapter(1, {"layers.0.q": 1}).norm()
    assert math.isclose((nudged - a).norm(), expected, rel_tol=0.05)  # squaring first would lose it altogether


def test_a_weight_of_zero_leaves_no_trace() -> None:
    a, b = adapter(0, {"layers.0.q": 2}), adapter(1, {"layers.0.q": 3})
    assert weft.weighted_sum([a, b], [1.0, 0.0]).factors["layers.0.q"].rank == 2


def test_modules_that_share_a_weight_share_it_afterwards_and_count_once() -> None:
    pair = adapter(0, {"layers.0.q": 2}).factors["layers.0.q"]
    tied = Adapter(LoRAConfig(rank=2), {"embed": pair, "head": pair}, {"embed": Layout(), "head": Layout()})
    both = tied + tied
    assert both.factors["embed"] is both.factors["head"]
    assert math.isclose(tied.norm(), float(pair.norm()), rel_tol=1e-12)
    assert math.isclose(weft.inner(tied, tied), float(pair.norm()) ** 2, rel_tol=1e-12)


def test_what_was_trained_whole_is_averaged() -> None:
    a = adapter(0, {"layers.0.q": 1}, tensors={"head.weight": torch.full((2, 2), 1.0)})
    b = adapter(1, {"layers.0.q": 1}, tensors={"head.weight": torch.full((2, 2), 3.0)})
    assert torch.equal(weft.weighted_sum([a, b], [0.25, 0.75]).tensors["head.weight"], torch.full((2, 2), 2.5))


def test_what_is_of_no_meaning_is_refused_by_name() -> None:
    ranks = {"layers.0.q": 1}
    headed = adapter(0, ranks, tensors={"head.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigError, match=r"head.weight was trained whole.*sum to 2"):
        headed + headed
    with pytest.raises(ConfigError, match=r"head.weight was trained whole in 1 of 2"):
        weft.weighted_sum([headed, adapter(1, ranks)], [0.5, 0.5])
    other = Adapter(LoRAConfig(), {"layers.0.q": LowRank(torch.ones(4, 1), torch.ones(1, 5))}, {"layers.0.q": Layout()})
    with pytest.raises(ConfigError, match=r"layers.0.q has different shapes: linear 7 x 5 in adapter 1, linear 4 x 5"):
        adapter(0, ranks) + other
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    dora = weft.collect(weft.attach(model, LoRAConfig(rank=1, targets="0", variant=weft.DoRA())))
    with pytest.raises(ConfigError, match=r"adapter 2 has trained magnitudes \(dora\)"):
        adapter(0, ranks) + dora
    for weights in ([1.0], [1.0, math.nan]):
        with pytest.raises(ConfigError, match="weights"):
            weft.weighted_sum([headed, headed], weights)
    assert (headed.__add__(1), headed.__sub__(1), headed.__mul__("x"), headed.__truediv__("x")) == (NotImplemented,) * 4


def test_adapters_of_different_bases_do_not_add_up() -> None:
    made = []
    for width in (4, 6):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(width, width))
        made.append(weft.collect(weft.attach(model, LoRAConfig(rank=1, targets="0"))))
    with pytest.raises(BaseMismatchError, match=r"adapter 1 .* and adapter 2 .* different bases"):
        made[0] + made[1]
