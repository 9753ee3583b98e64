"""Similarity of adapters, against dense arithmetic and the paper's definition."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import weft
from weft.analysis.inspect import inspect
from weft.analysis.similarity import compare, default_grids
from weft.errors import BaseMismatchError, ConfigError
from weft.fingerprint import fingerprint

from .adapters import adapter_of, low_rank, small

PATH = "model.layers.1.attn.q_proj"


def phi(V1: Tensor, V2: Tensor, i: int, j: int) -> float:
    """Section 7.2, from the singular vectors of dense matrices, as columns."""
    return float((V1[:, :i].T @ V2[:, :j]).square().sum()) / min(i, j)


def flat(adapter: weft.Adapter, paths: list[str]) -> Tensor:
    return torch.cat(
        [adapter.factors[p].dense().flatten() if p in adapter.factors else torch.zeros(12 * 10) for p in paths]
    )


def test_grids_are_the_papers_definition_on_dense_matrices() -> None:
    a, b = small(0), small(1)
    b = dataclasses.replace(b, factors={**b.factors, PATH: low_rank(rank=6)})  # another rank, as in figure 3
    (grid,) = compare({"a": a, "b": b}, [PATH]).grids
    U1, _, V1 = torch.linalg.svd(a.factors[PATH].dense())
    U2, _, V2 = torch.linalg.svd(b.factors[PATH].dense())
    assert (len(grid.inputs), len(grid.inputs[0])) == (4, 6)
    for i in range(4):
        for j in range(6):
            assert grid.inputs[i][j] == pytest.approx(phi(V1.T, V2.T, i + 1, j + 1), abs=1e-4)
            assert grid.outputs[i][j] == pytest.approx(phi(U1, U2, i + 1, j + 1), abs=1e-4)
    assert (len(grid.chance), len(grid.chance[0])) == (4, 6)


def test_random_reference_is_near_its_expectation() -> None:
    factors = {"a": low_rank(400, 400, 8)}
    (grid,) = compare({"a": adapter_of(factors), "b": adapter_of({"a": low_rank(400, 400, 8)})}, ["a"]).grids
    assert grid.chance[-1][-1] == pytest.approx(8 / 400, rel=0.5)
    assert grid.inputs[-1][-1] == pytest.approx(8 / 400, rel=0.5)


def test_cosines_are_those_of_the_matrices() -> None:
    a, b = small(0), small(1)
    a = dataclasses.replace(a, factors=dict(list(a.factors.items())[:-1]), layouts=dict(list(a.layouts.items())[:-1]))
    only_b = b.factors["lm_head"]
    overlap = compare({"a": a, "b": b})
    (pair,) = overlap.pairs
    paths = list(a.factors)
    x, y = flat(a, paths), torch.cat([flat(b, paths), only_b.dense().flatten()])
    assert pair.cosine == pytest.approx(float(x @ y[: len(x)] / x.norm() / y.norm()), abs=1e-5)
    assert overlap.cosine == ((1.0, pair.cosine), (pair.cosine, 1.0))
    assert (pair.only_first, pair.only_second) == ((), ("lm_head",))
    for module in pair.modules:
        d1, d2 = a.factors[module.path].dense().flatten(), b.factors[module.path].dense().flatten()
        assert module.cosine == pytest.approx(float(d1 @ d2 / d1.norm() / d2.norm()), abs=1e-5)
        assert (module.chance_inputs, module.chance_outputs) == (4 / 10, 4 / 12)
    assert pair.inputs == pytest.approx(sum(m.inputs for m in pair.modules) / len(pair.modules))


@given(st.integers(0, 1000), st.sampled_from([1.0, -2.0, 1e-3]))
def test_an_adapter_is_like_itself(seed: int, factor: float) -> None:
    a = small(seed, blocks=1)
    b = dataclasses.replace(a, factors={path: factor * D for path, D in a.factors.items()})
    overlap = compare({"a": a, "b": b})
    (pair,) = overlap.pairs
    assert pair.cosine == pytest.approx(math.copysign(1, factor), abs=1e-5)
    for module in pair.modules:
        assert module.cosine == pytest.approx(math.copysign(1, factor), abs=1e-5)
        assert module.inputs == pytest.approx(1, abs=1e-5)
        assert module.outputs == pytest.approx(1, abs=1e-5)


def test_similarity_does_not_depend_on_how_a_change_is_factored() -> None:
    a, b, R = small(0), small(1), torch.randn(4, 4)
    again = {path: weft.LowRank(D.B @ R, torch.linalg.solve(R, D.A), D.scaling) for path, D in a.factors.items()}
    first = compare({"a": a, "b": b}, [PATH])
    second = compare({"a": dataclasses.replace(a, factors=again), "b": b}, [PATH])
    assert first.pairs[0].inputs == pytest.approx(second.pairs[0].inputs, abs=1e-4)
    torch.testing.assert_close(
        torch.tensor(first.grids[0].inputs), torch.tensor(second.grids[0].inputs), rtol=0, atol=1e-3
    )


def test_many_adapters_make_a_symmetric_matrix() -> None:
    overlap = compare({name: small(seed) for seed, name in enumerate("abcd")}, [PATH])
    matrix = torch.tensor(overlap.inputs)
    torch.testing.assert_close(matrix, matrix.T)
    assert len(overlap.pairs) == 6
    assert [(grid.first, grid.second) for grid in overlap.grids] == [("a", "b"), ("a", "c"), ("a", "d")]


def test_a_change_of_zero_is_like_nothing() -> None:
    a = small(0)
    zero = dataclasses.replace(a, factors={path: 0.0 * D for path, D in a.factors.items()})
    overlap = compare({"a": a, "zero": zero}, [PATH])
    assert overlap.cosine == ((1.0, None), (None, None))
    assert overlap.grids == ()
    assert {(m.ranks, m.cosine, m.inputs) for m in overlap.pairs[0].modules} == {((4, 0), None, None)}


def test_default_grids_are_of_the_strongest_kinds() -> None:
    paths = default_grids(inspect(small(blocks=5)))
    assert sorted(paths) == sorted(f"model.layers.{i}.{k}" for i in (0, 2, 4) for k in ("attn.q_proj", "mlp.up_proj"))


def test_what_cannot_be_compared_is_refused() -> None:
    a = small()
    with pytest.raises(ConfigError, match="two adapters or more, found 1"):
        compare({"a": a})
    with pytest.raises(ConfigError, match=r"a and b have no module in common: a changes 'model\.layers\.0"):
        compare({"a": a, "b": adapter_of({"other": low_rank()})})
    with pytest.raises(ConfigError, match=r"lm_head: the change has shape \(20, 10\) in a and \(12, 10\) in b"):
        compare({"a": a, "b": adapter_of({"lm_head": low_rank()})})
    other = small(1, base=fingerprint({"w": torch.ones(3)}))
    mine = small(0, base=fingerprint({"w": torch.zeros(3)}))
    with pytest.raises(BaseMismatchError, match="a and b were made for different bases: in that of b, its weights"):
        compare({"a": mine, "b": other})
    assert compare({"a": mine, "b": other}, any_base=True).pairs
