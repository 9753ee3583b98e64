"""Evaluation of encoder-decoders: the model's own loss, and answers beside all references."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from weft.data.pairs import PairColumns
from weft.data.seq2seq import load_seq2seq
from weft.data.text import Collator
from weft.tasks.language.generation import Decoding
from weft.tasks.language.seq2seq_evaluation import evaluate_seq2seq
from weft.tasks.tiny import bases, build, data


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_loss_and_accuracy_are_the_models_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, files = build(bases, name)["base"], build(data, "summarize")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = load_seq2seq(files["eval"], tokenizer, PairColumns("dialogue", ("summary",)))
    model.train()
    state = torch.get_rng_state()
    found = evaluate_seq2seq(model, tokenizer, rows, batch_size=3, generate_rows=3, decoding=Decoding(5))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)

    model.eval()
    batch = Collator(tokenizer.pad_token_id)([rows[i] for i in range(len(rows))])  # all rows at once
    with torch.no_grad():
        output = model(**batch)
    learned = batch["labels"] != -100
    assert found.loss == pytest.approx(float(output.loss), rel=1e-5)
    assert found.scores["tokens"] == int(learned.sum()) == rows.report.label_tokens
    right = (output.logits.argmax(-1) == batch["labels"])[learned].float().mean()
    assert found.scores["token_accuracy"] == pytest.approx(float(right), abs=1e-6)

    assert (found.rows, found.scores["generated_rows"]) == (8, 3)  # two references to each of four
    first = found.samples[0]
    assert first.input == "Ann: How many are there?\nBob: Just one.\nAnn: Only one!"
    assert first.references == ("Bob has one.", "There are one.")
    ids = tokenizer(first.input, return_tensors="pt")
    alone = model.generate(**ids, max_new_tokens=5, do_sample=False)[0]
    assert first.answer == tokenizer.decode(alone, skip_special_tokens=True).strip()
