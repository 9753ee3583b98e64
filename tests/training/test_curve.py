"""What an adapter is worth at each rank: against `evaluate` of what attaching each would give."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import weft
from weft.errors import BaseMismatchError, ConfigError, DataError
from weft.linalg import LowRank
from weft.model.prefix import NESTED
from weft.tasks import evaluate
from weft.training import TextDataset, load_text
from weft.training.curve import RankCurve, RankPoint, at_rank, chosen, is_nested, ordered, rank_curve

RANK = 8
CONFIG = weft.LoRAConfig(rank=RANK, alpha=4, rank_pattern={"v_proj": 3})


@pytest.fixture
def data(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> TextDataset:
    return load_text(pairs, tokenizer)


@pytest.fixture
def adapter(base: Path, data: TextDataset) -> weft.Adapter:
    """Of full rank, and a few steps better than the base."""
    return learned(base, data, CONFIG)


def learned(base: Path, data: TextDataset, config: weft.LoRAConfig) -> weft.Adapter:
    model = weft.attach(LlamaForCausalLM.from_pretrained(base), config)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=2e-2)
    for example in data.examples[:8]:
        ids, labels = (torch.tensor([list(values)]) for values in (example.input_ids, example.labels))
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weft.collect(model)


def nested(adapter: weft.Adapter, ranks: list[int]) -> weft.Adapter:
    return dataclasses.replace(adapter, provenance={**adapter.provenance, NESTED: ranks})


@pytest.fixture
def loss(base: Path, tokenizer: PreTrainedTokenizerFast, data: TextDataset) -> Callable[[weft.Adapter | None], float]:
    """The loss of an adapter, by itself on a fresh base."""

    def measure(adapter: weft.Adapter | None) -> float:
        model = LlamaForCausalLM.from_pretrained(base)
        if adapter is not None:
            weft.attach(model, adapter)
        return evaluate(model, tokenizer, data).loss

    return measure


Loss = Callable[[weft.Adapter | None], float]


@pytest.mark.parametrize("variant", [weft.LoRA(), weft.DoRA()], ids=repr)
def test_each_point_is_what_the_resized_adapter_gives(
    base: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, loss: Loss,
    variant: weft.LoRA | weft.DoRA,
) -> None:  # fmt: skip
    adapter = learned(base, data, dataclasses.replace(CONFIG, variant=variant))
    curve = rank_curve(model, tokenizer, data, adapter)
    assert curve.order == "svd"
    assert [point.rank for point in curve.points] == [0, 1, 2, 4, 8]
    assert curve.points[0].loss == loss(None)
    assert curve.points[-1].loss == loss(adapter)
    for point in curve.points[1:-1]:
        resized = weft.resize(adapter, rank=point.rank)
        assert point.loss == pytest.approx(loss(resized), rel=1e-6)  # float32
        assert point.nbytes == resized.nbytes
        assert loss(at_rank(adapter, point.rank)) == pytest.approx(point.loss, rel=1e-6)
    assert curve.points[-1].nbytes == adapter.nbytes
    assert len({round(point.loss, 6) for point in curve.points}) == 5
    assert (curve.rows, curve.tokens) == (data.report.rows, data.report.label_tokens)
    assert weft.adapter_names(model) == ()


def test_a_nested_adapter_s_points_are_its_prefixes(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter, loss: Loss
) -> None:
    curve = rank_curve(model, tokenizer, data, nested(adapter, [1, 2, 4, 8]), ranks=[3, 1])
    assert curve.order == "trained"
    assert [point.rank for point in curve.points] == [0, 1, 3, 8]
    for point in curve.points[1:]:
        factors = {
            path: LowRank(f.B[:, : point.rank], f.A[: point.rank], f.scaling) for path, f in adapter.factors.items()
        }
        assert point.loss == pytest.approx(loss(dataclasses.replace(adapter, factors=factors)), rel=1e-6)


def test_one_that_is_trained_further_is_nested_no_more(model: LlamaForCausalLM, adapter: weft.Adapter) -> None:
    one = nested(adapter, [1, 2, 4, 8])
    weft.attach(model, one, name="kept")
    weft.attach(model, one, name="trained", trainable=True)
    assert [is_nested(weft.collect(model, name)) for name in ("kept", "trained")] == [True, False]


def test_a_sum_of_nested_adapters_is_not_nested(adapter: weft.Adapter) -> None:
    one = nested(adapter, [1, 2, 4, 8])
    assert is_nested(one)
    assert is_nested(0.5 * one)
    assert not is_nested(one + one)
    assert is_nested(at_rank(one, 4))


def test_attached_adapters_are_active_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter
) -> None:
    weft.attach(model, CONFIG, name="mine")
    ids = torch.arange(6, 30)[None]
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.1)
        before = model(ids).logits
        alone = rank_curve(LlamaForCausalLM.from_pretrained(model.name_or_path), tokenizer, data, adapter, ranks=[2])
        assert rank_curve(model, tokenizer, data, adapter, ranks=[2]) == alone
        assert torch.equal(model(ids).logits, before)
    assert weft.adapter_names(model) == ("mine",)


def test_half_precision_factors_stay_half(adapter: weft.Adapter) -> None:
    half = {path: value.to(dtype=torch.bfloat16) for path, value in adapter.factors.items()}
    small = at_rank(dataclasses.replace(adapter, factors=half), 2)
    assert {value.dtype for value in small.factors.values()} == {torch.bfloat16}
    assert small.nbytes * 2 == at_rank(adapter, 2).nbytes


def test_intervals_are_those_of_resampled_rows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter
) -> None:
    """Against the definition, one resample at a time, with draws of its own."""
    curve = rank_curve(model, tokenizer, data, adapter, ranks=[2], resamples=4000)
    tokens, losses = per_row(model, tokenizer, data, adapter)
    draw = np.random.default_rng(99)
    means = []
    for _ in range(4000):
        rows = draw.integers(len(tokens), size=len(tokens))
        means.append(losses[rows].sum(0) / tokens[rows].sum())
    drawn = np.array(means)
    base, _, whole = curve.points
    sd = drawn.std(0)
    assert base.loss_interval == pytest.approx(np.quantile(drawn[:, 0], (0.025, 0.975)), abs=0.15 * sd[0])
    gains = drawn[:, 0] - drawn[:, 1]
    assert base.worse_interval == pytest.approx(np.quantile(gains, (0.025, 0.975)), abs=0.15 * gains.std())
    assert whole.worse_interval == (0, 0)
    assert rank_curve(model, tokenizer, data, adapter, ranks=[2], resamples=4000) == curve
    assert rank_curve(model, tokenizer, data, adapter, ranks=[2], seed=1) != curve


def per_row(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Learned tokens, and the losses of the base and the adapter, of each row alone."""
    rows = [TextDataset([example]) for example in data.examples]
    base = [evaluate(model, tokenizer, row) for row in rows]
    weft.attach(model, adapter)
    whole = [evaluate(model, tokenizer, row) for row in rows]
    weft.detach(model)
    tokens = np.array([each.scores["tokens"] for each in base])
    losses = np.array(
        [[a.loss * a.scores["tokens"], b.loss * b.scores["tokens"]] for a, b in zip(base, whole, strict=True)]
    )
    return tokens, losses


def curve_of(*points: tuple[int, float, float]) -> RankCurve:
    """From (rank, worse, the upper end of its interval)."""
    made = [RankPoint(rank, 100 * rank, 2 + w, (1.0, 3.0), w, (w - 0.05, high)) for rank, w, high in points]
    return RankCurve("svd", tuple(made), rows=20, tokens=99, resamples=10, seed=0)


def test_the_smallest_rank_is_that_whose_interval_ends_within_the_tolerance() -> None:
    curve = curve_of((0, 2.0, 2.1), (1, 0.018, 0.03), (2, 0.01, 0.02), (4, 0.0, 0.0))
    assert curve.gain == 2.0
    assert curve.kept(curve.points[1]) == pytest.approx(0.991)
    found = {tolerance: curve.smallest(tolerance) for tolerance in (0.0, 0.009, 0.01, 0.02)}
    assert {tolerance: point.rank for tolerance, point in found.items() if point} == {
        0.0: 4,
        0.009: 4,
        0.01: 2,
        0.02: 1,
    }
    with pytest.raises(ConfigError, match="tolerance: expected a share of the gain from 0 up to, but not, 1, found 1"):
        curve.smallest(1.0)


@pytest.mark.parametrize("gain", [0.04, -0.5])
def test_where_there_may_be_no_gain_no_rank_is_chosen(adapter: weft.Adapter, gain: float) -> None:
    curve = curve_of((0, gain, gain + 0.1), (8, 0.0, 0.0))
    assert curve.smallest(0.01) is None
    assert (curve.kept(curve.points[0]) is None) == (gain < 0)
    with pytest.raises(ConfigError, match=r"on these 20 rows the adapter gains -?0.*there may be no gain to keep"):
        chosen(adapter, curve, 0.01, data="d.jsonl")


@pytest.mark.parametrize("order", ["svd", "trained"])
def test_the_chosen_one_is_a_plain_adapter_that_says_where_it_came_from(
    base: Path, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter, loss: Loss,
    tmp_path: Path, order: str,
) -> None:  # fmt: skip
    adapter = nested(adapter, [1, 2, 4, 8]) if order == "trained" else adapter
    curve = rank_curve(LlamaForCausalLM.from_pretrained(base), tokenizer, data, adapter)
    point = curve.smallest(0.9)
    assert point is not None
    assert point.rank < RANK
    small = chosen(adapter, curve, 0.9, data="d.jsonl", name="mine")
    lineage = small.provenance["lineage"]
    assert {key: lineage[key] for key in ("operation", "rank", "order", "tolerance", "data")} == {
        "operation": "curve", "rank": point.rank, "order": order, "tolerance": 0.9, "data": "d.jsonl"
    }  # fmt: skip
    assert lineage["inputs"][0]["name"] == "mine"
    small.save(tmp_path / "small")
    loaded = weft.load(tmp_path / "small")
    assert loaded.config.rank == point.rank == max(value.rank for value in loaded.factors.values())
    assert loaded.nbytes == point.nbytes
    assert loss(loaded) == pytest.approx(point.loss, rel=1e-6)
    ids = torch.arange(6, 40)[None]
    with torch.no_grad():
        mine = weft.attach(LlamaForCausalLM.from_pretrained(base), small)(ids).logits
        theirs = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "small")(ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_pissa_at_its_whole_rank_and_below(
    base: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, loss: Loss
) -> None:
    """Its change is saved as factors of twice the rank."""
    adapter = learned(base, data, weft.LoRAConfig(rank=2, init=weft.PiSSA(), targets="q_proj"))
    curve = rank_curve(model, tokenizer, data, adapter)
    assert [point.rank for point in curve.points] == [0, 1, 2, 4]
    assert curve.points[2].loss == pytest.approx(loss(weft.resize(adapter, rank=2)), rel=1e-6)


def test_what_cannot_be_evaluated_is_one_message(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter
) -> None:
    def fails(error: type[Exception], message: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {"dataset": data, "adapter": adapter, **changes}
        with pytest.raises(error, match=message):
            rank_curve(model, tokenizer, **arguments)
        assert weft.adapter_names(model) == ()

    fails(ConfigError, "ranks: this adapter's go from 0, the base, to 8; found 16", ranks=[1, 16])
    fails(ConfigError, "found -1", ranks=[-1])
    fails(DataError, "the data set has one row", dataset=TextDataset(data.examples[:1]))
    empty = dataclasses.replace(adapter, factors={}, layouts={}, tensors={"lm_head.weight": torch.zeros(2)})
    fails(ConfigError, "this adapter has no factors", adapter=empty)
    with pytest.raises(ConfigError, match="rank: expected 1 or more, found 0"):
        at_rank(adapter, 0)
    path, value = next(iter(adapter.factors.items()))
    broken = dataclasses.replace(adapter, factors={**adapter.factors, path: value * 1.0})
    broken.factors[path].B.data[0, 0] = float("nan")
    fails(ConfigError, "holds NaN or infinity", adapter=broken)


def test_another_base_is_refused(
    base: Path, tokenizer: PreTrainedTokenizerFast, data: TextDataset, adapter: weft.Adapter
) -> None:
    other = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    with pytest.raises(BaseMismatchError, match="made for another base"):
        rank_curve(other, tokenizer, data, adapter)
    assert len(rank_curve(other, tokenizer, data, adapter, any_base=True).points) == 5


def test_the_curve_is_plain_values(adapter: weft.Adapter) -> None:
    curve = curve_of((0, 2.0, 2.1), (8, 0.0, 0.0))
    values = json.loads(json.dumps(curve.to_dict()))
    assert values["gain"] == 2.0
    assert values["points"][0]["kept"] == 0
    assert values["points"][1]["worse_interval"] == [-0.05, 0.0]
    assert ordered(nested(adapter, [8])).factors is adapter.factors
