"""Classification: an encoder or a decoder with a head learns which of several labels a text has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from weft.data.classification import (
    ClassCollator,
    ClassColumns,
    ClassDataset,
    LabeledText,
    encoded_texts,
    learned_names,
    read_labeled,
)
from weft.data.text import beginnings, pad_id
from weft.errors import ConfigError
from weft.model import LayPrompt
from weft.tasks.class_metrics import CLASS_METRICS, MATTHEWS, class_scores
from weft.tasks.classifiers import Classifier, in_order_of, load_classifier, load_tokenizer
from weft.tasks.context import room, too_long_rows
from weft.tasks.settings.classify import ClassifyRun
from weft.training.base import BUNDLED
from weft.training.mode import evaluating
from weft.training.task import Evaluation, Metric, Sample, Task

_SAMPLES = 8  # answers that a report shows


class ClassifyTask(Task):
    """A run on classification: a base with a head, and texts with a label each.

    The head is trained whole, and saved with the adapter. The best weights are those of the highest Matthews
    correlation: unlike accuracy it gives nothing for answering the most frequent label, and the loss may rise again, as
    a classifier grows too sure, while it still makes fewer errors.
    """

    metrics = (Metric("loss", "loss (nats per row)", greater_is_better=False), *CLASS_METRICS)
    best = MATTHEWS.key
    config: ClassifyRun
    train_data: ClassDataset
    eval_data: ClassDataset | None

    def __init__(
        self,
        config: ClassifyRun,
        tokenizer: PreTrainedTokenizerBase,
        classifier: Classifier,
        train_data: ClassDataset,
        eval_data: ClassDataset | None,
    ) -> None:
        self.config, self.tokenizer, self.classifier, self.model = config, tokenizer, classifier, classifier.model
        self.train_data, self.eval_data = train_data, eval_data
        self.train_report, self.eval_report = train_data.report, eval_data.report if eval_data else None
        self._loss = ClassLoss(_balanced(train_data) if config.class_weights == "balanced" else None)

    @classmethod
    def open(cls, config: ClassifyRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        columns = ClassColumns(config.text_column, config.text_pair_column, config.label_column)
        rows = read_labeled(config.train, columns, config.train_split)
        if config.label_names is None:
            names = in_order_of(config.base, learned_names(config.train, rows))
        else:
            names = _distinct(config.label_names)
        tokenizer = load_tokenizer(config.base)
        classifier = load_classifier(
            config.base,
            names,
            tokenizer,
            dtype=torch.bfloat16 if config.bf16 else torch.float32,
            seed=config.seed,
        )
        if classifier.new and console is not None:
            console.print(f"new on this base, and trained whole: {', '.join(classifier.new)}")
        found = {
            "label_names": names,
            "max_length": _max_length(config, classifier),
            "train_modules": tuple(dict.fromkeys((*config.train_modules, *classifier.heads))),
        }
        config = config.model_copy(update=found)

        def encode(source: str, rows: list[LabeledText]) -> ClassDataset:
            return encoded_texts(
                source,
                rows,
                names,
                tokenizer,
                pair_types=classifier.tells_texts_apart,
                max_length=config.max_length,
                long_rows=config.long_rows,
            )

        train_data, eval_data = encode(config.train, rows), None
        if config.eval is not None:
            eval_data = encode(config.eval, read_labeled(config.eval, columns, config.eval_split))
        elif config.eval_share is not None:
            train_data, eval_data = train_data.split(config.eval_share, config.seed)
        return cls(config, tokenizer, classifier, train_data, eval_data)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return ClassCollator(pad_id(self.tokenizer), LayPrompt(self.model, beginnings(self.tokenizer)))

    @property
    def loss(self) -> Callable[[Any, Tensor, Tensor | int | None], Tensor]:
        """Cross entropy, with the labels' weights; the models' own would not know these."""
        return self._loss

    @property
    def sampling(self) -> Literal["random", "group_by_length"]:
        return "group_by_length"

    def evaluate(self) -> Evaluation:
        assert self.eval_data is not None
        data = self.eval_data
        logits = self.logits(data)
        labels = torch.tensor([example.label for example in data.examples])
        answers = logits.argmax(-1)
        count = min(_SAMPLES, len(data))
        shown = [i * len(data) // count for i in range(count)]
        return Evaluation(
            rows=len(data),
            scores={
                "loss": float(cross_entropy(logits, labels)),
                **class_scores(labels.tolist(), answers.tolist(), len(data.names)),
            },
            samples=[
                Sample(data.examples[i].text, data.names[int(labels[i])], data.names[int(answers[i])]) for i in shown
            ],
        )

    def logits(self, data: ClassDataset) -> Tensor:
        """What the head answers to each row, with the adapters that are active now: (rows, labels), float32."""
        lengths = data.lengths
        order = sorted(range(len(data)), key=lambda i: lengths[i])
        logits = torch.zeros(len(data), len(data.names))
        with evaluating(self.model):
            for start in range(0, len(order), self.config.batch_size):
                places = order[start : start + self.config.batch_size]
                batch = self.collator([data[i] for i in places])
                inputs = {
                    key: value.to(self.classifier.model.device) for key, value in batch.items() if key != "labels"
                }
                logits[places] = self.model(**inputs).logits.float().cpu()
        return logits

    def save_beside(self, folder: Path) -> None:
        """The model's configuration, with the labels' names."""
        self.classifier.model.config.save_pretrained(folder)

    def usage(self, adapter: Path) -> str:
        base = "str(weft.bundled_base())" if self.config.base == BUNDLED else repr(self.config.base)
        text = '"TEXT"' if self.config.text_pair_column is None else '{"text": "TEXT", "text_pair": "ANOTHER"}'
        return "\n".join(
            [
                "```python",
                "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline",
                "",
                "import weft",
                "",
                f"base, adapter = {base}, {str(adapter)!r}",
                "config = AutoConfig.from_pretrained(adapter)  # with the labels' names",
                "model = AutoModelForSequenceClassification.from_pretrained(base, config=config)",
                "weft.attach(model, weft.load(adapter))  # the head too",
                "tokenizer = AutoTokenizer.from_pretrained(base)",
                'classify = pipeline("text-classification", model=model, tokenizer=tokenizer)',
                f"print(classify({text}))",
                "```",
            ]
        )


class ClassLoss:
    """The cross entropy of a batch's rows, each counted by its label's weight, as transformers' Trainer asks for it.

    Args:
        weights: of the labels, (labels), with a mean of 1 over the rows; None counts all alike.
    """

    def __init__(self, weights: Tensor | None) -> None:
        self.weights = weights

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The sum over a batch's rows, over the rows of the whole step (without them: of this batch)."""
        logits = outputs["logits"].float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        total = cross_entropy(logits, labels, weights, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _balanced(data: ClassDataset) -> Tensor:
    """rows / (labels x rows with the label), (labels); 0 for a label that no row has.

    King and Zeng, Logistic regression in rare events data, 2001.
    """
    counts = torch.tensor(list(data.report.labels.values()), dtype=torch.float32)
    there = counts > 0
    return torch.where(there, len(data) / (there.sum() * counts.clamp(min=1)), 0.0)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"label_names: expected two different labels at least, each once; found {', '.join(names)}")
    return names


def _max_length(config: ClassifyRun, classifier: Classifier) -> int | None:
    context = room(config, classifier.context)
    if config.max_length is not None and context is not None and config.max_length > context:
        raise too_long_rows(config.max_length, config, context)
    return context if config.max_length is None else config.max_length
