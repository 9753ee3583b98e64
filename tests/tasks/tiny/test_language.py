"""The stand-ins for language models are what their names say, and the data are what the tasks read."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import weft
from weft.data.instructions import load_instructions, read_instructions
from weft.data.pairs import PairColumns
from weft.data.seq2seq import load_seq2seq
from weft.data.text import Collator
from weft.tasks.tiny import bases, build, data


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "architecture"), [("llama", "llama"), ("mistral", "mistral"), ("qwen", "qwen3")])
def test_a_decoder_is_of_its_family_and_takes_instructions(name: str, architecture: str) -> None:
    folder = build(bases, name)["base"]
    assert AutoConfig.from_pretrained(folder).model_type == architecture
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert {m.path.rsplit(".", 1)[-1] for m in weft.plan(model, weft.LoRAConfig(rank=1)).modules} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    rows, _ = load_instructions(build(data, "instruct")["train"], tokenizer)
    with torch.no_grad():
        assert model(torch.tensor([rows[0]["input_ids"]])).logits.isfinite().all()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_is_of_its_family_and_takes_dialogues(name: str) -> None:
    folder = build(bases, name)["base"]
    assert AutoConfig.from_pretrained(folder).model_type == name
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    files = build(data, "summarize")
    columns = PairColumns(files["input_column"], (files["summary_column"],))
    train, held_out = (load_seq2seq(files[side], tokenizer, columns) for side in ("train", "eval"))
    assert (len(train), len(held_out)) == (10, 8)  # two references to each of four
    with torch.no_grad():
        assert model(**Collator(tokenizer.pad_token_id)([train[0], train[1]])).loss.isfinite()


def test_instructions_come_in_two_layouts() -> None:
    files = build(data, "instruct")
    assert [read_instructions(files[side]).layout.name for side in ("train", "eval")] == ["sharegpt", "alpaca"]
    first = next(iter(read_instructions(files["train"])))
    assert [turn["role"] for turn in first.turns] == ["system", "user", "assistant", "user", "assistant"]
