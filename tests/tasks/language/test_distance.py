"""The distance tells near data from far ones, and its advice follows from the sizes of data and base."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_base import Write

from weft.bundled import bundled_base
from weft.data.text import load_text
from weft.tasks import TextRun
from weft.tasks.language.distance import text_distance
from weft.training.advice import advise
from weft.training.base import Base, load_base
from weft.training.distance import Advice, Distance

NEAR = "The old man looked at the sea and thought of his wife and of the house in which they had lived. "


@pytest.fixture(scope="module")
def bundled() -> Base:
    return load_base(bundled_base())


def distance(base: Base, source: Path, **settings: object) -> Distance:
    run = TextRun(train=str(source), output="x", **settings)
    rows = load_text(source, base.tokenizer, max_length=48)
    return text_distance(run, base.model, base.tokenizer, rows)


def test_strange_text_is_farther_by_loss_and_vocabulary(bundled: Base, write: Write) -> None:
    rng = random.Random(0)
    near = distance(bundled, write([{"text": NEAR[i:]} for i in range(6)], "near.jsonl"))
    letters = ["".join(rng.choices("bcdfghjklmnpqrstvwxz", k=7)) for _ in range(60)]
    strange = distance(bundled, write([{"text": " ".join(letters[i : i + 10])} for i in range(6)], "far.jsonl"))
    greek = distance(bundled, write([{"text": "ω ψχφ τσρ ποξ νμλ"}] * 3, "greek.jsonl"))
    assert near.median < strange.median < strange.guessing
    assert near.low <= near.median <= near.high
    assert near.per_character < strange.per_character
    assert near.per_character < greek.per_character  # although its bytes, one by one, are easy
    words = near.vocabulary, strange.vocabulary, greek.vocabulary
    assert [each.whole_words > 0.5 for each in words] == [True, False, False]
    assert [each.tokens_per_word > 3 for each in words] == [False, True, True]
    assert [each.fragments > 0.5 for each in words] == [False, False, True]


def test_truncated_rows_are_counted_and_nothing_is_disturbed(bundled: Base, write: Write) -> None:
    state, weight = torch.get_rng_state(), bundled.model.get_input_embeddings().weight.detach().clone()
    found = distance(bundled, write([{"text": NEAR * 4}, {"text": NEAR}, {"text": "a b"}, {"text": "c d"}]))
    assert found.vocabulary.truncated == 0.25
    assert found.rows == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(bundled.model.get_input_embeddings().weight, weight)
    assert not bundled.model.training


def named(advice: list[Advice]) -> dict[str, float]:
    return {each.setting: each.value for each in advice}


def test_advice_follows_from_the_sizes(bundled: Base) -> None:
    run = TextRun(train="x", output="y", rank=8)
    few = named(advise(run, bundled.model, rows=400, label_tokens=50_000, loss=4.0))
    # A rank of 1 is 28,032 parameters here, and a parameter holds as much as a token tells.
    assert few == {"rank": 2, "learning_rate": 0.0025, "epochs": 5}
    many = named(advise(run, bundled.model, rows=40_000, label_tokens=5_000_000, loss=4.0))
    assert many == {"rank": 128, "learning_rate": 0.0025, "epochs": 1}  # 256 would be more than the narrowest has
    known = named(advise(run, bundled.model, rows=400, label_tokens=50_000, loss=0.1))
    assert known["rank"] == 1  # there is little to tell
    short = named(advise(run.model_copy(update={"batch_size": 64}), bundled.model, rows=100, label_tokens=1, loss=4.0))
    assert short["learning_rate"] == 0.0037  # fifteen times full fine-tuning's


def test_it_is_said_in_sentences() -> None:
    found = Distance(rows=3, low=1.0, median=2.0, high=3.0)
    assert str(found).splitlines()[1].strip().startswith("base loss over 3 rows: 2.00 nats per learned token")
    more = replace(found, guessing=5.0, advice=(Advice("rank", 4, 8, "so it is"),))
    assert "guessing gives 5.00" in str(more)
    assert str(more).endswith("advice: rank 4 (the run has 8): so it is")
