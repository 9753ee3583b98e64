"""One digest for one change, wherever it is kept; another for any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness import LAYERS, Case, adapted

import weft
from weft import Adapter, Layout, LoRAConfig, LowRank
from weft.digest import digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_it_survives_a_file(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    value = weft.collect(adapted(case, dtype))
    value.save(tmp_path / "a")
    assert digest(weft.load(tmp_path / "a")) == digest(value)


def test_it_tells_apart_what_computes_differently_and_nothing_else() -> None:
    torch.manual_seed(0)
    factors = {"a": LowRank(torch.randn(4, 2), torch.randn(2, 3), 2.0)}
    value = Adapter(LoRAConfig(rank=2), factors, {"a": Layout()}, {"b.bias": torch.zeros(4)})
    same = replace(value, provenance={"task": "x"}, config=replace(value.config, dropout=0.5))
    assert digest(same) == digest(value)
    pair = factors["a"]
    others = [
        replace(value, factors={"a": LowRank(pair.B, pair.A, 2.0000001)}),
        replace(value, factors={"a": LowRank(pair.B + 1e-6, pair.A, 2.0)}),
        replace(value, factors={"a": pair.to(dtype=torch.float64)}),
        replace(value, factors={"z": pair}, layouts={"z": Layout()}),
        replace(value, layouts={"a": Layout("embedding")}),
        replace(value, tensors={}),
        replace(value, tensors={"b.bias": torch.ones(4)}),
        replace(value, magnitudes={"a": torch.ones(4)}),
    ]
    assert len({digest(each) for each in [value, *others]}) == len(others) + 1
