"""Classification: an encoder or a decoder with a head learns which of several labels a text has."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import PreTrainedTokenizerBase

from weft.data.classification import (
    ClassCollator,
    ClassColumns,
    ClassDataset,
    LabeledText,
    encoded_texts,
    learned_names,
    read_labeled,
    text_of_row,
)
from weft.data.rows import Row, read_rows
from weft.data.text import beginnings, pad_id
from weft.errors import ConfigError
from weft.model import LayPrompt
from weft.tasks.classification.classifiers import Classifier, in_order_of, load_classifier, load_tokenizer
from weft.tasks.classification.metrics import CLASS_METRICS, MATTHEWS, class_scores
from weft.tasks.language.context import room, too_long_rows
from weft.tasks.settings.classify import ClassifyRun
from weft.training.base import BUNDLED
from weft.training.mode import evaluating
from weft.training.pseudo_labels import Guess, SelfTrainedTask, Unlabeled
from weft.training.task import Evaluation, Metric, Sample

_SAMPLES = 8  # answers that a report shows


class ClassifyTask(SelfTrainedTask):
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
        columns = _columns(config)
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
                Sample(str(data.examples[i].text), data.names[int(labels[i])], data.names[int(answers[i])])
                for i in shown
            ],
        )

    def logits(self, data: ClassDataset) -> Tensor:
        """What the head answers to each row, with the adapters that are active now: (rows, labels), float32."""
        with evaluating(self.model):
            return self._logits(data)

    def unlabeled(self) -> Unlabeled:
        assert self.config.unlabeled is not None
        assert self.eval_data is not None
        evaluated, known = ({each.text.key for each in data.examples} for data in (self.eval_data, self.train_data))
        rows, held_out, repeated = [], 0, 0
        for row in read_rows(self.config.unlabeled, self.config.unlabeled_split):
            key = text_of_row(row, self._columns).key
            if key in evaluated:
                held_out += 1
            elif key in known:
                repeated += 1
            else:
                known.add(key)
                rows.append(row)
        return Unlabeled(rows, held_out, repeated)

    def guess(self, rows: Sequence[Row]) -> list[Guess]:
        if not rows:
            return []
        texts = [LabeledText(text_of_row(row, self._columns), None) for row in rows]
        data = encoded_texts(
            str(self.config.unlabeled),
            texts,
            self.train_data.names,
            self.tokenizer,
            pair_types=self.classifier.tells_texts_apart,
            max_length=self.config.max_length,
        )
        sure = self._agreement(data) if self.config.selection == "consistency" else self.logits(data).softmax(-1)
        confidence, label = sure.max(-1)
        names = [data.names[i] for i in label.tolist()]
        return [
            Guess({**row.values, self.config.label_column: name}, name, value)
            for row, name, value in zip(rows, names, confidence.tolist(), strict=True)
        ]

    def _agreement(self, data: ClassDataset) -> Tensor:
        """The share of several passes with dropout that answer with each label, (rows, labels)."""
        drops = self.config.dropout > 0 or any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.model.modules())
        if not drops:
            raise ConfigError(
                "selection: consistency compares passes with dropout, and neither the base nor the adapter drops "
                "anything; set dropout, or select by threshold"
            )
        votes = torch.zeros(len(data), len(data.names))
        with evaluating(self.model), torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            self.model.train()
            for _ in range(self.config.passes):
                votes += one_hot(self._logits(data).argmax(-1), len(data.names))
        return votes / self.config.passes

    def _logits(self, data: ClassDataset) -> Tensor:
        lengths = data.lengths
        order = sorted(range(len(data)), key=lambda i: lengths[i])
        logits, collate = torch.zeros(len(data), len(data.names)), self.collator
        for start in range(0, len(order), self.config.batch_size):
            places = order[start : start + self.config.batch_size]
            batch = collate([data[i] for i in places])
            inputs = {key: value.to(self.classifier.model.device) for key, value in batch.items() if key != "labels"}
            logits[places] = self.model(**inputs).logits.float().cpu()
        return logits

    @property
    def _columns(self) -> ClassColumns:
        return _columns(self.config)

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


def _columns(config: ClassifyRun) -> ClassColumns:
    return ClassColumns(config.text_column, config.text_pair_column, config.label_column)


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
