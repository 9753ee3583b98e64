"""Searching: each condition finds what it says, all of them hold together, and similarity is what the factors say."""

import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import weft
from weft.errors import ConfigError
from weft.library import Library, index
from weft.library.estimate import estimated_cosines, standard_error
from weft.library.sketch import inner, norm, sketch

from .values import adapter, base


def names(library: Library, *words: object, **conditions: object) -> list[str]:
    return [found.manifest.name for found in library.search(*words, **conditions)]  # type: ignore[arg-type]


@pytest.fixture(params=[True, False], ids=["fts5", "without fts5"])
def library(tmp_path: Path, request: pytest.FixtureRequest) -> Library:
    place = tmp_path / "library"
    (place / "objects").mkdir(parents=True)
    with index.writing(place / "index.sqlite", 1.0, fts5=request.param) as made:
        assert made.ranked == request.param
    library = Library(place)
    one, other = base(0), base(1)
    library.add(
        adapter(0, one, base="org/model-a"), "chat-short", task="chat", tags=["good"], description="Quick answers"
    )
    library.add(adapter(1, one, base="org/model-a"), "chat-long", task="Chat", tags=["good", "slow"])
    library.add(adapter(2, other, base="org/model-b"), "names", task="naming", description="chat about 100% of names")
    library.add(adapter(3, base="model-a"), "foreign", tags=["slow"])
    return library


def test_each_condition(library: Library) -> None:
    assert names(library, "chat ans") == ["chat-short"]
    assert set(names(library, "CHAT")) == {"chat-short", "chat-long", "names"}
    assert names(library, '100% "names') == (["names"] if index.has_fts5() and _ranked(library) else [])
    assert names(library, "100%") == ["names"]
    assert names(library, "nothing") == names(library, "!!!") == []
    assert names(library, task="chat") == ["chat-long", "chat-short"]
    assert names(library, tags=["slow"]) == ["foreign", "chat-long"]
    assert names(library, tags=["slow", "good"]) == ["chat-long"]
    assert names(library, base="org/model-a") == ["chat-long", "chat-short"]
    assert names(library, base="model-a") == ["foreign", "chat-long", "chat-short"]
    assert names(library, base="del-a") == names(library, base="model%a") == []
    assert names(library, base=base(0)) == names(library, base=base(0, torch.bfloat16)) == ["chat-long", "chat-short"]
    assert names(library, base=base(2)) == []
    assert names(library, limit=2) == ["foreign", "names"], "the newest first"
    assert len(names(library, limit=None)) == 4


def _ranked(library: Library) -> bool:
    with index.reading(library.path / "index.sqlite", 1.0) as found:
        return found.ranked


def test_all_conditions_hold_together(library: Library) -> None:
    assert names(library, "chat", base=base(0), task="chat", tags=["good"]) == [
        "chat-long",
        "chat-short",
    ] or not _ranked(library)
    assert names(library, "answers", base=base(0), task="chat", tags=["good"]) == ["chat-short"]
    assert names(library, "answers", base=base(1), task="chat", tags=["good"]) == []
    near = adapter(9, near=library.load("chat-short"))
    assert names(library, similar=near)[0] == "chat-short"
    assert names(library, "long", similar=near, tags=["good"]) == ["chat-long"]


def test_a_name_counts_for_more_than_a_description(tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    library.add(adapter(0), "weaving")
    library.add(adapter(1), "other", description="weaving and some more words")
    assert names(library, "weaving") == ["weaving", "other"]


def test_similar_is_exact_for_the_nearest_and_within_its_error_for_others(tmp_path: Path) -> None:
    library, query = Library(tmp_path / "library"), adapter(99, base(0))
    made = {f"n{i}": adapter(i, base(0), near=query if i < 3 else None) for i in range(12)}
    for name, each in made.items():
        library.add(each, name)
    exact = {name: inner(query, each) / (norm(query) * norm(each)) for name, each in made.items()}
    dense = {name: _dense_cosine(query, each) for name, each in made.items()}
    assert exact == pytest.approx(dense, abs=1e-5)

    found = library.search(similar=query, exact=4)
    assert {each.manifest.name for each in found[:3]} == {"n0", "n1", "n2"}
    for each in found[:4]:
        assert each.cosine == pytest.approx(exact[each.manifest.name], abs=1e-5)
        assert each.standard_error == 0
    assert [each.cosine for each in found[:4]] == sorted((each.cosine or 0 for each in found[:4]), reverse=True)
    for each in found[4:]:
        assert each.standard_error == pytest.approx(1 / math.sqrt(512), rel=0.2)
        assert each.cosine == pytest.approx(exact[each.manifest.name], abs=5 * (each.standard_error or 0))

    library.add(query, "query")
    (first, *_) = library.search(similar="query")
    assert first.manifest.name != "query", "itself is no answer"
    assert library.search(similar=query)[0].cosine == pytest.approx(1.0, abs=1e-6)


def _dense_cosine(a: weft.Adapter, b: weft.Adapter) -> float:
    one, other = (torch.cat([f.dense(torch.float64).flatten() for f in each.factors.values()]) for each in (a, b))
    return float(one @ other / (one.norm() * other.norm()))


def test_adapters_of_other_bases_are_not_similar(tmp_path: Path) -> None:
    library, query = Library(tmp_path / "library"), adapter(0, base(0))
    library.add(query, "same")
    library.add(replace(adapter(1), factors=(0.5 * query).factors, base=base(1)), "other")
    library.add(replace(adapter(1), factors=(0.25 * query).factors), "unknown")
    assert set(names(library, similar=query)) == {"same", "unknown"}
    assert names(library, similar="same") == ["unknown"]
    assert set(names(library, similar=replace(query, base=None))) == {"same", "other", "unknown"}


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_error_of_an_estimate_is_what_it_says(rho: float) -> None:
    errors = []
    for seed in range(80):
        a, b = adapter(2 * seed), adapter(2 * seed + 1)
        mixed = rho * a + math.sqrt(1 - rho**2) * b
        # Other names, other hashes: the errors are independent.
        a, mixed = (
            weft.Adapter(
                each.config,
                {f"{seed}.{path}": f for path, f in each.factors.items()},
                {f"{seed}.{path}": weft.Layout() for path in each.factors},
            )
            for each in (a, mixed)
        )
        one, other = sketch(a), sketch(mixed)
        assert one is not None
        assert other is not None
        exact = inner(a, mixed) / (norm(a) * norm(mixed))
        errors.append((float(estimated_cosines([other], one)[0]) - exact) / standard_error(exact))
    assert abs(statistics.mean(errors)) < 0.4  # 3.6 standard errors of the mean
    assert 0.75 < statistics.pstdev(errors) < 1.3


def test_a_sketch_is_the_same_on_every_machine() -> None:
    found = sketch(adapter(0))
    assert found is not None
    assert list(found[:6]) == FIRST


FIRST = [0, 250, 1, 0, 0, 10]


def test_a_base_on_the_disk_is_known_by_its_weights(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=None,
    )  # fmt: skip
    library = Library(tmp_path / "library")
    for name in ("one", "other"):
        model = LlamaForCausalLM(config)
        made = weft.collect(weft.attach(model, weft.LoRAConfig(rank=2)))
        library.add(replace(made, provenance={"base": "somewhere/base"}), name)
        weft.detach(model)
        model.to(torch.bfloat16).save_pretrained(tmp_path / name)  # another dtype: the same base
        library.add(replace(adapter(len(name)), provenance={"base": str(tmp_path / name)}), f"bare-{name}")
    said = {"base": str(tmp_path / "one")}
    library.add(replace(adapter(7, base(7)), provenance=said), "another-of-that-name")
    assert names(library, base=tmp_path / "one") == ["bare-one", "one"]
    assert names(library, base=str(tmp_path / "other")) == ["bare-other", "other"]
    with pytest.raises(ConfigError, match="there is no model in"):
        library.search(base=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="there is no model in"):
        library.search(base="./nothing")


def test_finding_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    library.add(adapter(0, base="org/model"), "one", tags=["t"])
    code = (
        "import sys; from weft.library import Library; library = Library(sys.argv[1]); "
        "assert [f.manifest.name for f in library.search('one', base='model', tags=['t'])] == ['one']; "
        "assert library.adapters() and library.names() and library.lineage('one') and library.folder('one'); "
        "library.edit('one', tags=['u']) if sys.argv[2:] else None; "
        "print(*sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code, library.path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
