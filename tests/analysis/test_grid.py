"""Numbers by block and kind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.analysis.grid import block_grid, energy_shares, mean, short_names
from weft.analysis.inspect import inspect

from .adapters import adapter_of, small


def test_energy_is_that_of_the_matrices() -> None:
    adapter = small()
    energy = {path: float(D.dense().square().sum()) for path, D in adapter.factors.items()}
    total = sum(energy.values())
    grid = energy_shares(inspect(adapter))
    assert grid.blocks == (0, 1, 2, None)
    assert grid.kinds == ("lm_head", "q_proj", "up_proj")
    assert grid.cells[1][1] == pytest.approx(energy["model.layers.1.attn.q_proj"] / total, rel=1e-4)
    assert grid.cells[3] == (pytest.approx(energy["lm_head"] / total, rel=1e-4), None, None)
    assert grid.cells[0][0] is None
    assert grid.by_kind()[2] == pytest.approx(
        sum(energy[f"model.layers.{i}.mlp.up_proj"] for i in range(3)) / total, rel=1e-4
    )


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_energies_sum_to_one(scales: list[float]) -> None:
    factors = {
        f"h.{i // 2}.{'ab'[i % 2]}": weft.LowRank(torch.eye(4, 2) * scale, torch.ones(2, 3))
        for i, scale in enumerate(scales)
    }
    grid = energy_shares(inspect(adapter_of(factors)))
    assert sum(grid.by_block()) == pytest.approx(1)
    assert sum(grid.by_kind()) == pytest.approx(1)


def test_energy_of_an_untrained_adapter_is_zero() -> None:
    grid = energy_shares(inspect(adapter_of({"a": weft.LowRank(torch.zeros(3, 1), torch.ones(1, 2))})))
    assert grid.cells == ((0.0,),)


def test_several_modules_of_one_cell_are_combined() -> None:
    values = {f"layers.0.experts.{e}.w1": float(e) for e in range(4)}
    assert block_grid(values).cells == ((6.0,),)
    assert block_grid(values, mean).cells == ((1.5,),)


def test_names_are_as_short_as_tells_them_apart() -> None:
    names = ["l.*.attention.output.dense", "l.*.output.dense", "l.*.intermediate.dense", "l.*.attention.query"]
    assert list(short_names(names).values()) == [
        "attention.output.dense",
        "*.output.dense",
        "intermediate.dense",
        "query",
    ]
    assert short_names(["a"]) == {"a": "a"}
