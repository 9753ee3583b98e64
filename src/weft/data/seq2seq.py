"""Pairs for encoder-decoder models: the encoder reads the source, the decoder learns the target."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from weft.data.pairs import PairColumns, read_pairs, shortened
from weft.data.text import (
    INPUT,
    DataReport,
    LongRows,
    ended,
    ids_of,
    none_left,
    split_rows,
    too_long,
)


@dataclass(frozen=True)
class Seq2SeqExample:
    """One pair as token ids: what the encoder reads, and what the decoder is to write, with its end."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    truncated: bool = False


class Seq2SeqDataset(Dataset[dict[str, list[int]]]):
    """Examples in memory; an item is {"input_ids": [...], "labels": [...]}, of two lengths."""

    def __init__(self, examples: list[Seq2SeqExample], dropped: int = 0) -> None:
        self.examples = examples
        learned = sum(len(example.labels) for example in examples)
        self.report = DataReport(
            rows=len(examples),
            truncated=sum(example.truncated for example in examples),
            dropped=dropped,
            tokens=learned + sum(len(example.input_ids) for example in examples),
            label_tokens=learned,
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self.examples[index]
        return {"input_ids": list(example.input_ids), "labels": list(example.labels)}

    def split(self, share: float, seed: int) -> tuple["Seq2SeqDataset", "Seq2SeqDataset"]:
        """Two data sets: the rest, and a share as `split_rows` chooses it; pairs of one source stay together.

        Raises:
            DataError: there are fewer than two sources.
        """
        rest, held = split_rows([tuple(example.input_ids) for example in self.examples], share, seed)
        return (
            Seq2SeqDataset([self.examples[i] for i in rest], self.report.dropped),
            Seq2SeqDataset([self.examples[i] for i in held]),
        )


def load_seq2seq(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    columns: PairColumns,
    *,
    prompt: str = INPUT,
    split: str = "train",
    max_length: int | None = None,
    long_rows: LongRows = "truncate",
) -> Seq2SeqDataset:
    """Reads pairs, and tokenizes them for an encoder-decoder model.

    A prompt longer than `max_length` loses the end of its source. A target that is longer is left out, with its
    pair, since a cut one would teach the model not to stop.

    Args:
        source, columns, split: as of `read_pairs`.
        tokenizer: the base's; special tokens are those that it gives sources and targets.
        prompt: the wording of what the encoder reads; the source stands at ``{input}``.
        max_length: tokens of a prompt at most, and of a target; None for no limit.
        long_rows: what to do with longer ones: "truncate" as above, "drop" them, or raise an "error".

    Raises:
        DataError: as of `read_pairs`, or a row that is too long.
        ConfigError: the tokenizer has no end-of-sequence token.
    """
    examples: list[Seq2SeqExample] = []
    dropped = 0
    for pair in read_pairs(source, columns, split):
        read = ids_of(prompt.replace(INPUT, pair.source), tokenizer, start=True)
        said = ended(_target_ids(pair.target, tokenizer), tokenizer)
        truncated = False
        if max_length is not None and max(len(read), len(said)) > max_length:
            if long_rows == "error":
                raise too_long(pair.where, f"{len(read)} tokens, and {len(said)} of the target", max_length)
            fits = long_rows == "truncate" and len(said) <= max_length
            text = shortened(pair.source, prompt, max_length, tokenizer) if fits else None
            if text is None:
                dropped += 1
                continue
            read, truncated = ids_of(prompt.replace(INPUT, text), tokenizer, start=True), True
        examples.append(Seq2SeqExample(array("i", read), array("i", said), truncated))
    if not examples:
        raise none_left(source, dropped, max_length)
    return Seq2SeqDataset(examples, dropped)


def _target_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text_target=text, verbose=False)["input_ids"]
    return ids
