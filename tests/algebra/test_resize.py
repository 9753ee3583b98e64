"""Fewer ranks, at the least cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import weft
from weft import Adapter, LoRAConfig
from weft.algebra import resize_with_costs
from weft.digest import digest
from weft.errors import ConfigError

from .values import adapter, adapters


@given(adapters(1), st.integers(1, 3))
def test_each_module_is_the_nearest_of_the_rank(values: list[Adapter], rank: int) -> None:
    (value,) = values
    rank = min(rank, max(factors.rank for factors in value.factors.values()))
    costed = resize_with_costs(value, rank=rank)
    for path, factors in value.factors.items():
        D = factors.dense()
        best = float(torch.linalg.svdvals(D)[rank:].norm() / D.norm())
        kept = costed.adapter.factors[path]
        assert kept.rank <= rank
        assert_close(float((kept.dense() - D).norm() / D.norm()), best, rtol=1e-9, atol=1e-11)
        assert_close(costed.costs.modules[path].relative_error, best, rtol=1e-9, atol=1e-11)


@given(adapters(1), st.sampled_from([0.3, 0.9, 0.99]))
def test_energy_gives_each_module_the_rank_that_it_needs(values: list[Adapter], energy: float) -> None:
    (value,) = values
    for path, kept in weft.resize(value, energy=energy).factors.items():
        squares = torch.linalg.svdvals(value.factors[path].dense()).square()
        shares = (squares.cumsum(0) / squares.sum()).tolist()
        assert shares[kept.rank - 1] >= energy - 1e-9
        assert kept.rank == 1 or shares[kept.rank - 2] < energy + 1e-9


@given(adapters(1), st.sampled_from([0.05, 0.4]))
def test_error_is_kept_within(values: list[Adapter], error: float) -> None:
    (value,) = values
    costed = resize_with_costs(value, error=error)
    assert costed.costs.relative_error <= error
    assert float((value - costed.adapter).norm()) <= error * value.norm() * (1 + 1e-9)


def test_a_whole_resized_adapter_attaches_and_keeps_what_else_was_trained() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 2))
    weft.attach(model, LoRAConfig(rank=4, targets="0", variant=weft.DoRA(), train_modules=("1",)))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    value = weft.collect(model)
    smaller = weft.resize(value, rank=2)
    assert smaller.tensors.keys() == value.tensors.keys()
    assert torch.equal(smaller.magnitudes["0"], value.magnitudes["0"])
    weft.attach(model, smaller, "smaller")
    assert weft.collect(model, "smaller").factors["0"].rank == 2


def test_it_says_where_it_came_from() -> None:
    value = adapter(0, {"layers.0.q": 3})
    assert weft.resize(value, rank=2).provenance["lineage"] == {
        "operation": "resize",
        "inputs": [{"digest": digest(value)}],
        "limit": {"rank": 2},
    }


def test_bad_input_is_named() -> None:
    value = adapter(0, {"layers.0.q": 3})
    with pytest.raises(ConfigError, match=r"rank: 4 is more than this adapter has \(3\)"):
        weft.resize(value, rank=4)
    with pytest.raises(ConfigError, match="exactly one of rank, energy and error; found none"):
        weft.resize(value)
    with pytest.raises(ConfigError, match="has no factors"):
        weft.resize(Adapter(LoRAConfig(), {}, {}), rank=1)
    value.factors["layers.0.q"].B[0, 0] = math.inf
    with pytest.raises(ConfigError, match=r"the adapter: layers.0.q holds NaN or infinity"):
        weft.resize(value, rank=1)
