"""Pairs for encoder-decoder models, and their batches, through models' own forward."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from weft.data.pairs import PairColumns
from weft.data.seq2seq import load_seq2seq
from weft.data.text import IGNORED, Collator
from weft.errors import DataError

Write = Callable[..., Path]

COLUMNS = PairColumns("dialogue", ("summary",))
ROWS = [{"dialogue": "0123456789", "summary": "abc"}, {"dialogue": "01", "summary": "a"}]


def test_source_and_target_are_apart(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_seq2seq(write(ROWS), tokenizer, COLUMNS, prompt="sum: {input}")
    assert tokenizer.decode(list(data.examples[0].input_ids)) == "sum: 0123456789"
    assert tokenizer.decode(list(data.examples[0].labels)) == "abc<eos>"
    assert (data.report.rows, data.report.tokens, data.report.label_tokens) == (2, 15 + 4 + 7 + 2, 6)


def test_special_tokens_are_those_that_the_tokenizer_gives(write: Write, base: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base, bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",  # as BART's
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    data = load_seq2seq(write(ROWS), tokenizer, COLUMNS, prompt="{input}.", max_length=8)
    assert tokenizer.decode(list(data.examples[0].input_ids)) == "<bos>01234.<eos>"  # the source is cut, no more
    assert tokenizer.decode(list(data.examples[0].labels)) == "<bos>abc<eos>"
    assert data.examples[0].truncated


def test_a_target_that_is_too_long_leaves_its_pair_out(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_seq2seq(write(ROWS), tokenizer, COLUMNS, max_length=3)
    assert (data.report.rows, data.report.dropped) == (1, 1)
    with pytest.raises(DataError, match=r"line 1: 10 tokens, and 4 of the target, and max_length is 3"):
        load_seq2seq(write(ROWS), tokenizer, COLUMNS, max_length=3, long_rows="error")


def test_padding_changes_no_loss(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_seq2seq(write(ROWS), tokenizer, COLUMNS)
    collate = Collator(tokenizer.pad_token_id)
    batch = collate([data[0], data[1]])
    assert batch["input_ids"].shape == (2, 10)
    assert batch["labels"].tolist()[1][2:] == [IGNORED, IGNORED]
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, vocab_size=len(tokenizer), decoder_start_token_id=1, pad_token_id=1)
    ).eval()
    with torch.no_grad():
        alone = [float(model(**collate([data[i]])).loss) for i in range(2)]
        together = float(model(**batch).loss)
    assert together == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6, rel=1e-5)
