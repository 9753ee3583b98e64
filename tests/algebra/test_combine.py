"""Combining: exact in delta space; a limit costs what Eckart and Young say; each bad input has one message."""

import math
from dataclasses import replace

import peft
import pytest
import torch
from harness import LAYERS, Case, adapted, output
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import weft
from weft import Adapter, LoRAConfig, LowRank
from weft.algebra import SVD, Concat, Linear, combine_with_costs
from weft.digest import digest
from weft.errors import BaseMismatchError, ConfigError

from .values import adapter, adapters, dense_sum

ONE = {"layers.0.q": 3}


@given(adapters(2), st.sampled_from([(1.0, 1.0), (0.7, 0.3), (1.0, -1.0)]), st.sampled_from(["linear", "concat"]))
def test_linear_and_concat_are_exact_with_mixed_ranks_scalings_and_targets(
    values: list[Adapter], weights: tuple[float, float], method: str
) -> None:
    costed = combine_with_costs(values, method, weights)
    for path, matrix in dense_sum(values, weights).items():
        found = costed.adapter.factors[path].dense(torch.float64)
        assert_close(found, matrix, rtol=0, atol=1e-11 * (1 + float(matrix.norm())))
    assert costed.costs.relative_error < 1e-12


def test_linear_keeps_only_the_directions_that_are_there() -> None:
    a = adapter(0, ONE)
    assert weft.combine([a, a], "linear").factors["layers.0.q"].rank == 3
    assert weft.combine([a, a], "concat").factors["layers.0.q"].rank == 6
    assert weft.combine([a, a], weights=[1, -1]).norm() < 1e-12


@given(adapters(2), st.integers(1, 3), st.sampled_from(["linear", "concat", "svd"]))
def test_a_rank_limit_gives_the_nearest_matrix_and_says_what_it_cost(
    values: list[Adapter], rank: int, method: str
) -> None:
    costed = combine_with_costs(values, method, [0.7, 0.3], rank=rank)
    lost, whole = [], []
    for path, matrix in dense_sum(values, [0.7, 0.3]).items():
        S = torch.linalg.svdvals(matrix)
        best, norm = float(S[rank:].norm()), float(S.norm())
        kept, cost = costed.adapter.factors[path], costed.costs.modules[path]
        assert kept.rank <= rank
        assert_close(float((kept.dense() - matrix).norm()), best, rtol=1e-9, atol=1e-9 * norm)
        assert_close(cost.relative_error * cost.norm, best, rtol=1e-9, atol=1e-9 * norm)
        lost.append(best)
        whole.append(norm)
    assert_close(costed.costs.relative_error, math.hypot(*lost) / math.hypot(*whole), rtol=1e-9, atol=1e-12)


def test_svd_keeps_the_largest_rank_that_went_in() -> None:
    assert weft.combine([adapter(0, ONE), adapter(1, {"layers.0.q": 2})], "svd").factors["layers.0.q"].rank == 3


ADDITIVE = [case for case in LAYERS if isinstance(case.config.variant, weft.LoRA)]


@pytest.mark.parametrize("case", ADDITIVE, ids=lambda case: case.name)
def test_what_is_combined_computes_what_both_do_together(case: Case) -> None:
    """Over every layer kind: the attached combination against both adapters, active with their weights."""
    model, x = adapted(case, torch.float64), case.input(torch.float64)
    first = weft.collect(model)
    others = {path: LowRank(value.B.roll(1, 0), value.A, -0.5) for path, value in first.factors.items()}
    second = replace(first, factors=others)
    weft.attach(model, second, "second")
    with weft.active(model, {"default": 0.75, "second": 0.25}):
        expected = output(model, x)
    weft.attach(model, weft.combine([first, second], weights=[0.75, 0.25]), "both")
    assert_close(output(model, x), expected, rtol=1e-9, atol=1e-9)


def test_against_peft_whose_linear_has_cross_terms() -> None:
    """At full rank peft's "svd" is the exact sum; its "linear" is far from it, and weft's is that sum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": False}
    theirs = peft.get_peft_model(model, peft.LoraConfig(**config), "a")
    theirs.add_adapter("b", peft.LoraConfig(**config))
    layer = theirs.base_model.model[0]
    made = []
    for name in ("a", "b"):
        value = LowRank(layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach(), 2.0)
        made.append(Adapter(LoRAConfig(rank=3), {"0": value}, {"0": weft.Layout()}))
    deltas = {}
    for kind in ("svd", "linear"):
        theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], kind, combination_type=kind, svd_rank=6)
        deltas[kind] = layer.get_delta_weight(kind).detach()
    ours = weft.combine(made, "linear", [0.7, 0.3]).factors["0"].dense()
    assert_close(ours, deltas["svd"], rtol=1e-4, atol=1e-5)
    assert float((deltas["linear"] - ours).norm() / ours.norm()) > 0.3


def test_the_result_says_how_it_was_made() -> None:
    a, b = adapter(0, ONE), adapter(1, ONE)
    inside = combine_with_costs([a, b], SVD(), [0.5, 2.0], rank=2, names=["one", "two"]).adapter
    assert inside.provenance["lineage"] == {
        "operation": "combine",
        "method": "svd",
        "limit": {"rank": 2},
        "inputs": [
            {"digest": digest(a), "name": "one", "weight": 0.5},
            {"digest": digest(b), "name": "two", "weight": 2.0},
        ],
    }
    outside = weft.combine([inside, a])
    assert outside.provenance["lineage"]["inputs"][0]["lineage"] == inside.provenance["lineage"]
    assert "lineage" not in (inside + a).provenance, "a sum of values does not pass on what is no longer true"


@pytest.mark.parametrize("method", ["linear", "concat", "svd"])
def test_files_of_a_combination_are_read_back_as_they_were(method: str, tmp_path: object) -> None:
    values = [adapter(seed, {"layers.0.q": 3, "layers.1.q": seed + 1}, dtype=torch.float32) for seed in (0, 1)]
    made = weft.combine(values, method, [1, -1])
    made.save(f"{tmp_path}/made")
    back = weft.load(f"{tmp_path}/made")
    assert digest(back) == digest(made)
    assert back.provenance == made.provenance


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "linnear"}, "no merge method 'linnear'; did you mean 'linear'"),
        ({"weights": [1.0]}, "weights: found 1 for 2 adapters"),
        ({"weights": [1.0, math.inf]}, "weights: expected finite numbers, found inf"),
        ({"rank": 7}, r"rank: 7 is more than any module can have \(5\)"),
        ({"rank": 0}, "rank: expected a whole number of at least 1, found 0"),
        ({"rank": 2, "energy": 0.9}, "exactly one of rank, energy and error; found rank and energy"),
        ({"energy": 1.5}, "energy: expected a share above 0 and up to 1, found 1.5"),
        ({"error": 1.0}, "error: expected a relative error"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weft.combine([adapter(0, ONE), adapter(1, ONE)], **settings)  # type: ignore[arg-type]


def test_bad_adapters_are_named() -> None:
    good = adapter(0, ONE)
    with pytest.raises(ConfigError, match="there is none"):
        weft.combine([])
    with pytest.raises(ConfigError, match=r"adapter 1 changes no module .*'layers.0.q' and so on, they 'layers.1.mlp'"):
        weft.combine([good, adapter(1, {"layers.1.mlp": 1})])
    bad = adapter(1, ONE)
    bad.factors["layers.0.q"].A[0, 0] = math.nan
    with pytest.raises(ConfigError, match=r"adapter 2: layers.0.q holds NaN or infinity"):
        weft.combine([good, bad])


def test_different_bases_combine_only_when_asked() -> None:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(weft.collect(weft.attach(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(rank=1, targets="0"))))
    with pytest.raises(BaseMismatchError, match="different bases"):
        weft.combine(made)
    assert weft.combine(made, any_base=True).factors["0"].shape == (4, 4)


def test_methods_are_values() -> None:
    assert (Linear(), Concat(), SVD()) == (Linear(), Concat(), SVD())
    assert Linear().to_plain() == "linear"
