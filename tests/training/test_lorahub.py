"""LoraHub on a tiny model, where the weights that made the data are known."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import weft
from weft.adapter import Adapter
from weft.data.text import IGNORED, Example, TextDataset
from weft.digest import digest
from weft.errors import BaseMismatchError, ConfigError, DataError, StateError
from weft.tasks import evaluate
from weft.training import Base, Composition, WeightSearch, search_weights

KNOWN = {"a": 0.7, "b": 0.3, "c": 0.0}


@pytest.fixture
def loaded(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Base:
    model.model.embed_tokens.weight.data.mul_(20)  # the head too: as it starts, it says everything alike
    return Base(model.eval(), tokenizer, "tiny")


@pytest.fixture
def adapters(loaded: Base) -> dict[str, Adapter]:
    """Three random ones, strong enough that the model says other things with each; of unlike ranks."""
    found = {}
    for number, name in enumerate(KNOWN):
        weft.attach(loaded.model, weft.LoRAConfig(rank=2 + number, alpha=4), name=name)
        with torch.no_grad():
            for parameter in weft.trainable_parameters(loaded.model):
                parameter.normal_(std=0.3)
        found[name] = weft.collect(loaded.model, name)
        weft.detach(loaded.model)
    return found


def spoken(base: Base, adapter: Adapter, rows: int, seed: int) -> TextDataset:
    """Rows that the base says with an adapter, drawn at random: no weights predict them better than its own."""
    torch.manual_seed(seed)
    weft.attach(base.model, adapter)
    ids = torch.randint(6, 200, (rows, 2))
    with torch.no_grad():
        for _ in range(60):
            p = base.model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1)], 1)
    weft.detach(base.model)
    return TextDataset([Example(row, [IGNORED, IGNORED, *row[2:]]) for row in ids.tolist()])


@pytest.fixture
def teacher(adapters: Mapping[str, Adapter]) -> Adapter:
    return weft.combine(list(adapters.values()), "concat", list(KNOWN.values()))


@pytest.fixture
def examples(loaded: Base, teacher: Adapter) -> TextDataset:
    return spoken(loaded, teacher, rows=16, seed=1)


def loss(base: Base, adapter: Adapter | None, rows: TextDataset) -> float:
    if adapter is None:
        return evaluate(base.model, base.tokenizer, rows).loss
    weft.attach(base.model, adapter)
    found = evaluate(base.model, base.tokenizer, rows).loss
    weft.detach(base.model)
    return found


def test_the_weights_that_made_the_data_are_found(
    loaded: Base, adapters: dict[str, Adapter], teacher: Adapter, examples: TextDataset
) -> None:
    others = spoken(loaded, teacher, rows=16, seed=2)
    found = search_weights(loaded, adapters, examples, others, settings=WeightSearch(budget=40, penalty=0))
    assert found.weights == pytest.approx(KNOWN, abs=0.06)
    assert found.combination.examples <= loss(loaded, teacher, examples) + 1e-3
    assert found.combination.held_out == pytest.approx(loss(loaded, teacher, others), abs=0.02)
    assert found.gain.held_out is not None
    assert found.gain.held_out > 0.05


def test_every_loss_is_the_one_that_evaluate_finds(
    loaded: Base, adapters: dict[str, Adapter], teacher: Adapter, examples: TextDataset
) -> None:
    others = spoken(loaded, teacher, rows=5, seed=2)
    found = search_weights(loaded, adapters, examples, others, settings=WeightSearch(budget=12))
    values = list(adapters.values())
    known = {
        found.base: None,
        found.equal: weft.combine(values, "concat"),
        found.combination: weft.combine(values, "concat", list(found.weights.values())),
        **{found.singles[name]: adapter for name, adapter in adapters.items()},
    }
    assert len(known) == 6
    for losses, adapter in known.items():
        assert losses.examples == pytest.approx(loss(loaded, adapter, examples), abs=1e-5)
        assert losses.held_out == pytest.approx(loss(loaded, adapter, others), abs=1e-5)
    assert loss(loaded, found.costed.adapter, examples) == pytest.approx(found.combination.examples, abs=1e-6)
    best = min(adapters, key=lambda name: found.singles[name].examples)
    assert found.best_singles[0] == best
    assert found.gain.examples == found.singles[best].examples - found.combination.examples


def test_it_is_never_worse_on_the_examples_than_any_single_one(loaded: Base, adapters: dict[str, Adapter]) -> None:
    """The data are one adapter's own, so that nothing is to be gained over it."""
    examples = spoken(loaded, adapters["b"], rows=4, seed=3)
    found = search_weights(loaded, adapters, examples, settings=WeightSearch(budget=10, penalty=1.0))
    singles = [losses.examples for losses in found.singles.values()]
    assert found.combination.examples <= min(*singles, found.base.examples, found.equal.examples) + 1e-6
    assert found.weights["b"] == pytest.approx(1, abs=0.3)
    assert found.combination.held_out is None
    assert found.gain.held_out is None


def test_the_result_says_how_it_was_made_and_is_made_again_bit_for_bit(
    loaded: Base, adapters: dict[str, Adapter], examples: TextDataset, tmp_path: Path
) -> None:
    settings = WeightSearch(budget=12, bounds=(0, 1), penalty=0.01)
    found, again = (search_weights(loaded, adapters, examples, settings=settings) for _ in range(2))
    assert digest(found.costed.adapter) == digest(again.costed.adapter)
    found.costed.adapter.save(tmp_path / "found")
    lineage = weft.load(tmp_path / "found").provenance["lineage"]
    assert lineage["operation"] == "combine"
    method = lineage["method"]
    assert len(method.pop("examples")) == 64
    assert method == {"name": "lorahub", "budget": 12, "bounds": [0, 1], "penalty": 0.01, "rows": 16}
    assert lineage["inputs"] == [
        {"digest": digest(adapter), "name": name, "weight": found.weights[name]} for name, adapter in adapters.items()
    ]


def test_the_examples_are_known_again_by_their_digest(
    loaded: Base, adapters: dict[str, Adapter], examples: TextDataset
) -> None:
    fewer = TextDataset(examples.examples[:8])
    found = [search_weights(loaded, adapters, rows, settings=WeightSearch(budget=10)) for rows in (examples, fewer)]
    methods = [each.costed.adapter.provenance["lineage"]["method"] for each in found]
    assert methods[0]["examples"] != methods[1]["examples"]


def test_a_limit_of_the_ranks_is_kept_and_its_cost_measured(
    loaded: Base, adapters: dict[str, Adapter], examples: TextDataset
) -> None:
    settings = WeightSearch(budget=16)
    exact, limited = (search_weights(loaded, adapters, examples, settings=settings, rank=rank) for rank in (None, 2))
    assert {value.rank for value in limited.costed.adapter.factors.values()} == {2}
    assert limited.costed.costs.relative_error > 0.01
    assert limited.weights == exact.weights
    assert limited.combination.examples == pytest.approx(loss(loaded, limited.costed.adapter, examples), abs=1e-6)
    assert limited.combination.examples != pytest.approx(exact.combination.examples, abs=1e-3)


def test_the_base_is_left_as_it_was_whatever_happens(
    loaded: Base, adapters: dict[str, Adapter], examples: TextDataset
) -> None:
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}

    def interrupt(trial: object, best: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_weights(loaded, adapters, examples, progress=interrupt)
    search_weights(loaded, adapters, examples, settings=WeightSearch(budget=10))
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert weft.adapter_names(loaded.model) == ()


def test_what_cannot_be_is_refused(loaded: Base, adapters: dict[str, Adapter], examples: TextDataset) -> None:
    def found(those: dict[str, Adapter], held_out: TextDataset | None = None) -> Composition:
        return search_weights(loaded, those, examples, held_out, settings=WeightSearch(budget=10))

    a = adapters["a"]
    with pytest.raises(ConfigError, match="adapters: found 1, expected two or more"):
        found({"a": a})
    with pytest.raises(DataError, match="2 of 2 rows are among the examples"):
        found(adapters, TextDataset(examples.examples[3:5]))
    assert a.base is not None
    strange = replace(a, base=replace(a.base, structure="other"))
    with pytest.raises(BaseMismatchError, match="different bases"):
        found({"a": a, "strange": strange})
    with pytest.raises(BaseMismatchError, match="made for another base"):
        found({"strange": strange, "too": strange})
    whole = replace(a, tensors={"model.norm.weight": torch.ones(16)})
    with pytest.raises(ConfigError, match=r"model\.norm\.weight was trained whole"):
        found({"a": whole, "b": whole})
    assert weft.adapter_names(loaded.model) == ()
    weft.attach(loaded.model, weft.LoRAConfig(rank=2), name="mine")
    with pytest.raises(StateError, match="'mine' is attached"):
        found(adapters)
