"""Text: a causal language model learns completions, what an assistant says, or plain text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from rich.console import Console
from torch import Tensor

from weft.data.packed import PackedCollator
from weft.data.text import Collator, Columns, TextDataset, context_length, load_text, pad_id
from weft.errors import ConfigError
from weft.tasks.generation import Decoding
from weft.tasks.settings.text import TextRun
from weft.tasks.text_evaluation import evaluate
from weft.tasks.text_metrics import TEXT_METRICS
from weft.training.base import Base, load_base
from weft.training.frozen_blocks import FrozenBlocks
from weft.training.frozen_cache import FrozenCache, frozen_cache
from weft.training.packing import obstacle, packing
from weft.training.task import LOSS, Evaluation, Metric, Task
from weft.training.token_loss import head_of


class TextTask(Task):
    """A run on text: its base with the tokenizer, and rows as token ids."""

    metrics = (
        LOSS,
        Metric("perplexity", "perplexity", "{:.3f}", greater_is_better=False),
        Metric("token_accuracy", "token accuracy", "{:.2%}"),
        *TEXT_METRICS,
    )
    config: TextRun
    train_data: TextDataset
    eval_data: TextDataset | None

    def __init__(self, config: TextRun, base: Base, train_data: TextDataset, eval_data: TextDataset | None) -> None:
        self.config, self.base, self.model = config, base, base.model
        self.train_data, self.eval_data = train_data, eval_data
        self.train_report, self.eval_report = train_data.report, eval_data.report if eval_data else None
        self._cache: FrozenCache | None = None

    @classmethod
    def open(cls, config: TextRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        base = load_base(config.base, dtype=torch.bfloat16 if config.bf16 else torch.float32)
        config = config.model_copy(update={"max_length": _max_length(config, base)})
        train_data, eval_data = _data(config, base)
        batching, reason = _batching(config, base, train_data)
        if reason is not None and console is not None:
            console.print(f"batches are padded, and sorted by length, not packed: {reason}")
        return cls(config.model_copy(update={"batching": batching}), base, train_data, eval_data)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        collate = PackedCollator() if self.config.batching == "packed" else Collator(pad_id(self.base.tokenizer))
        return collate if self._cache is None else self._cache.collator(collate)

    @property
    def sampling(self) -> Literal["random", "group_by_length"]:
        return "group_by_length" if self.config.batching == "sorted" else "random"

    def evaluate(self) -> Evaluation:
        assert self.eval_data is not None
        return evaluate(
            self.base.model,
            self.base.tokenizer,
            self.eval_data,
            batch_size=self.config.batch_size,
            generate_rows=self.config.generate_rows,
            decoding=Decoding(self.config.max_new_tokens),
            cache=self._cache,
        )

    @contextmanager
    def session(self, scratch: Path, console: Console | None) -> Iterator[None]:
        """With ``cache_frozen``, the frozen blocks' output for every row, on disk."""
        if head_of(self.model) is None and console is not None:
            console.print(
                "the loss is taken from all learned logits of a batch at once: it is more than the head's output"
            )
        if not self.config.cache_frozen:
            yield
            return
        model, data = self.base.model, (self.train_data, self.eval_data)
        with (
            packing(model) if self.config.batching == "packed" else nullcontext(),
            frozen_cache(
                FrozenBlocks(model),
                [each for each in data if each is not None],
                self.collator,
                scratch,
                batch_size=self.config.batch_size,
                console=console,
            ) as cache,
        ):
            self._cache = cache
            self.train_data, self.eval_data = cache.datasets[0], cache.datasets[1] if self.eval_data else None
            yield
        self._cache = None
        self.train_data, self.eval_data = data

    def usage(self, adapter: Path) -> str:
        base = self.config.base
        return "\n".join(
            [
                "```",
                f'weft generate --base {base} --adapter {adapter} --prompt "..."',
                "```",
                "",
                "```python",
                "import weft",
                "from weft.training import load_base",
                "",
                f"base = load_base({base!r})",
                f"weft.attach(base.model, weft.load({str(adapter)!r}))",
                "```",
            ]
        )


def _data(config: TextRun, base: Base) -> tuple[TextDataset, TextDataset | None]:
    columns = Columns(config.messages_column, config.prompt_column, config.completion_column, config.text_column)

    def load(source: str, split: str) -> TextDataset:
        return load_text(
            source,
            base.tokenizer,
            split=split,
            columns=columns,
            max_length=config.max_length,
            long_rows=config.long_rows,
        )

    train_data = load(config.train, config.train_split)
    if config.eval is not None:
        return train_data, load(config.eval, config.eval_split)
    if config.eval_share is not None:
        return train_data.split(config.eval_share, config.seed)
    return train_data, None


def _batching(config: TextRun, base: Base, data: TextDataset) -> tuple[str, str | None]:
    """How batches are made, and why they are not packed where they would be if the base could take it."""
    if config.batching not in ("auto", "packed"):
        return config.batching, None
    reason = obstacle(base.model, data.longest)
    if reason is None:
        return "packed", None
    if config.batching == "packed":
        raise ConfigError(f"batching: this base cannot take packed batches: {reason}; set it to 'auto' or 'sorted'")
    return "sorted", reason


def _max_length(config: TextRun, base: Base) -> int | None:
    context = context_length(base.model)
    if config.max_length is not None and context is not None and config.max_length > context:
        raise ConfigError(f"max_length: {config.max_length} tokens are more than the base's context holds ({context})")
    return context if config.max_length is None else config.max_length
