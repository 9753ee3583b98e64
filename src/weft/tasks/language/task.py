"""What the tasks of language models have in common: all but where their rows come from."""

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from weft.data.packed import PackedCollator
from weft.data.seq2seq import Seq2SeqDataset
from weft.data.text import IGNORED, Collator, TextDataset, beginnings, context_length, pad_id
from weft.errors import ConfigError
from weft.memory import Sketch
from weft.model import LayPrompt
from weft.tasks.language.context import room, too_long_rows
from weft.tasks.language.distance import text_distance
from weft.tasks.language.evaluation import evaluate
from weft.tasks.language.generation import Decoding
from weft.tasks.language.metrics import TEXT_METRICS
from weft.tasks.language.seq2seq_evaluation import evaluate_seq2seq
from weft.tasks.language.sketch import language_sketch
from weft.tasks.settings.language import LanguageRun
from weft.training.base import Base, load_base
from weft.training.distance import Distance
from weft.training.frozen_blocks import FrozenBlocks
from weft.training.frozen_cache import FrozenCache, frozen_cache
from weft.training.packing import obstacle, packing
from weft.training.task import LOSS, Evaluation, Metric, Task
from weft.training.token_loss import head_of

C = TypeVar("C", bound=LanguageRun)

Rows = TextDataset | Seq2SeqDataset
"""A decoder's rows, or an encoder-decoder's."""


class LanguageTask(Task, ABC):
    """A run of a language model: its base with the tokenizer, and rows as token ids."""

    metrics = (
        LOSS,
        Metric("perplexity", "perplexity", "{:.3f}", greater_is_better=False),
        Metric("token_accuracy", "token accuracy", "{:.2%}"),
        *TEXT_METRICS,
    )
    config: LanguageRun
    train_data: Rows
    eval_data: Rows | None

    def __init__(self, config: LanguageRun, base: Base, train_data: Rows, eval_data: Rows | None) -> None:
        self.config, self.base, self.model = config, base, base.model
        self.train_data, self.eval_data = train_data, eval_data
        self.train_report, self.eval_report = train_data.report, eval_data.report if eval_data else None
        self._cache: FrozenCache | None = None

    @classmethod
    def with_rows(
        cls, config: LanguageRun, base: Base, load: Callable[[str, str], Rows], console: Console | None
    ) -> Self:
        """The task, opened.

        Args:
            config: the settings.
            base: from `open_base`.
            load: reads the rows of a source, and of a split of it.
            console: where to say how batches are made.

        Raises:
            ConfigError: batches or caches that the base cannot take.
            DataError: data that cannot be used.
        """
        train_data, eval_data = load(config.train, config.train_split), None
        if config.eval is not None:
            eval_data = load(config.eval, config.eval_split)
        elif config.eval_share is not None:
            train_data, eval_data = train_data.split(config.eval_share, config.seed)
        batching, reason = _batching(config, base, train_data)
        if reason is not None and console is not None:
            console.print(f"batches are padded, and sorted by length, not packed: {reason}")
        if config.cache_frozen and isinstance(train_data, Seq2SeqDataset):
            raise ConfigError("cache_frozen: it takes decoders, and the base is an encoder-decoder; leave it out")
        return cls(config.model_copy(update={"batching": batching}), base, train_data, eval_data)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        tokenizer = self.base.tokenizer
        padding, starts = pad_id(tokenizer), beginnings(tokenizer)
        if isinstance(self.train_data, Seq2SeqDataset):
            return Collator(padding, LayPrompt(self.model, starts))
        lay = LayPrompt(self.model, starts, IGNORED)
        collate = PackedCollator(lay) if self.config.batching == "packed" else Collator(padding, lay)
        return collate if self._cache is None else self._cache.collator(collate)

    @property
    def sampling(self) -> Literal["random", "group_by_length"]:
        return "group_by_length" if self.config.batching == "sorted" else "random"

    def evaluate(self) -> Evaluation:
        assert self.eval_data is not None
        config, model, tokenizer = self.config, self.base.model, self.base.tokenizer
        decoding = Decoding(config.max_new_tokens, config.num_beams, config.length_penalty, config.no_repeat_ngram_size)
        size, rows = config.batch_size, config.generate_rows
        if isinstance(self.eval_data, Seq2SeqDataset):
            return evaluate_seq2seq(
                model, tokenizer, self.eval_data, batch_size=size, generate_rows=rows, decoding=decoding
            )
        return evaluate(
            model,
            tokenizer,
            self.eval_data,
            batch_size=size,
            generate_rows=rows,
            decoding=decoding,
            cache=self._cache,
        )

    @classmethod
    def early_sketch(cls, config: LanguageRun) -> Sketch:  # type: ignore[override] # its own settings
        return language_sketch(config)

    def sketch(self) -> Sketch:
        if isinstance(self.train_data, Seq2SeqDataset):
            examples = self.train_data.examples
            longest = max(len(example.input_ids) for example in examples)
            return language_sketch(self.config, longest, max(len(example.labels) for example in examples))
        return language_sketch(self.config, self.train_data.longest)

    def distance(self) -> Distance | None:
        if isinstance(self.train_data, Seq2SeqDataset):
            return None
        return text_distance(self.config, self.base.model, self.base.tokenizer, self.train_data)

    @contextmanager
    def session(self, scratch: Path, console: Console | None) -> Iterator[None]:
        """With ``cache_frozen``, the frozen blocks' output for every row, on disk."""
        if isinstance(self.train_data, Seq2SeqDataset) or isinstance(self.eval_data, Seq2SeqDataset):
            yield
            return
        if head_of(self.model) is None and console is not None:
            console.print(
                "the loss is taken from all learned logits of a batch at once: it is more than the head's output"
            )
        if not self.config.cache_frozen:
            yield
            return
        model, train_data, eval_data = self.base.model, self.train_data, self.eval_data
        with (
            packing(model) if self.config.batching == "packed" else nullcontext(),
            frozen_cache(
                FrozenBlocks(model),
                [train_data] if eval_data is None else [train_data, eval_data],
                self.collator,
                scratch,
                batch_size=self.config.batch_size,
                console=console,
            ) as cache,
        ):
            self._cache = cache
            self.train_data, self.eval_data = cache.datasets[0], cache.datasets[1] if eval_data else None
            yield
        self._cache = None
        self.train_data, self.eval_data = train_data, eval_data


def open_base(config: C, *, encoder_decoders: bool = False) -> tuple[Base, C]:
    """The base that the settings name, and the settings with the length of rows that suits it.

    Args:
        config: the settings.
        encoder_decoders: take these too.

    Raises:
        ConfigError: there is no such base, or rows longer than its context are asked for.
    """
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    base = load_base(config.base, dtype=dtype, quantize=config.quantize, encoder_decoders=encoder_decoders)
    context = room(config, context_length(base.model))
    if config.max_length is None:
        return base, config.model_copy(update={"max_length": context})
    # What T5 was trained on is no limit: its positions are relative.
    limited = not base.model.config.is_encoder_decoder or "max_position_embeddings" in base.model.config.to_dict()
    if limited and context is not None and config.max_length > context:
        raise too_long_rows(config.max_length, config, context)
    return base, config


def in_shell(config: LanguageRun, adapter: Path, options: str) -> list[str]:
    """Markdown that generates with a run's adapter, in a shell and in Python."""
    base, held = config.base, config.quantize
    flag, argument = ("", "") if held == "none" else (f" --quantize {held}", f", quantize={held!r}")
    return [
        "```",
        f"weft generate --base {base}{flag} --adapter {adapter} {options}",
        "```",
        "",
        "```python",
        "import weft",
        "from weft.training import load_base",
        "",
        f"base = load_base({base!r}{argument})",
        f"weft.attach(base.model, weft.load({str(adapter)!r}))",
        "```",
    ]


def _batching(config: LanguageRun, base: Base, data: Rows) -> tuple[str, str | None]:
    """How batches are made, and why they are not packed where they would be if the base could take it."""
    if config.batching not in ("auto", "packed"):
        return config.batching, None
    reason = (
        "it is an encoder-decoder"
        if isinstance(data, Seq2SeqDataset)
        else obstacle(base.model, data.longest + config.prompt_length)
    )
    if reason is None:
        return "packed", None
    if config.batching == "packed":
        raise ConfigError(f"batching: this base cannot take packed batches: {reason}; set it to 'auto' or 'sorted'")
    return "sorted", reason
