"""`Task`: what a training run asks of the kind of thing that is learned; each kind is one file in `weft.tasks`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from weft.memory import Sketch, batch_on_meta, on_meta
from weft.training.config import RunConfig
from weft.training.distance import Distance

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Metric:
    """One of the numbers that an evaluation finds.

    Attributes:
        key: its name among an evaluation's scores.
        title: its name for people, with the unit.
        form: how it is shown, such as ``{:.1f}``.
        greater_is_better: whether a larger one is.
    """

    key: str
    title: str
    form: str = "{:.4f}"
    greater_is_better: bool = True

    def shown(self, value: float | None) -> str:
        """The value for people; nothing for None."""
        return "" if value is None else self.form.format(value)


EVAL = "eval_"
LOSS = Metric("loss", "loss (nats per learned token)", greater_is_better=False)


@dataclass(frozen=True)
class Sample:
    """What the model answered to one held-out row, beside what the row has; all as people would read it.

    Attributes:
        input: what it was asked.
        reference: what was wanted.
        answer: what it said.
        others: further references, each as good as the first.
    """

    input: str
    reference: str
    answer: str
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All of them."""
        return self.reference, *self.others


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation on held-out rows found.

    Attributes:
        rows: rows evaluated.
        scores: by name, "loss" always among them.
        samples: some answers, to read.
        picture: what the model drew, if it draws.
    """

    rows: int
    scores: Mapping[str, float]
    samples: Sequence[Sample] = ()
    picture: "Image | None" = field(default=None, repr=False, compare=False)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.scores["loss"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the samples."""
        return {"rows": self.rows, **self.scores}

    def prefixed(self) -> dict[str, Any]:
        """The same under the names that transformers' Trainer gives to what an evaluation found."""
        return {f"{EVAL}{key}": value for key, value in self.to_dict().items()}


class Report(Protocol):
    """What became of a data set's rows: a dataclass, whose `str` is a sentence for people."""

    @property
    def rows(self) -> int:
        """Rows kept."""
        ...


class Task(ABC):
    """One opened run of a kind: its base, its data, and how the two meet.

    The loss is the model's own: ``model(**batch)`` answers with a "loss". For causal language models,
    `AdapterTrainer` takes it in chunks of learned tokens.

    Attributes:
        metrics: what `evaluate` may find, in the order of tables.
        best: the metric that keeping the best weights and early stopping go by.
        config: the settings, with what was found out while opening.
        model: what the adapter is attached to, in evaluation mode.
        train_data, eval_data: what the collator takes rows of; no held-out data is None.
        train_report, eval_report: what became of the rows.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    best: ClassVar[str] = "loss"

    config: RunConfig
    model: nn.Module
    train_data: Dataset[Any]
    eval_data: Dataset[Any] | None
    train_report: Report
    eval_report: Report | None

    @classmethod
    @abstractmethod
    def open(cls, config: RunConfig, console: Console | None) -> Self:
        """Loads the base and the data that the settings name; what there is to say goes to the console.

        Raises:
            ConfigError: settings that do not fit the base.
            DataError: data that cannot be used.
        """

    @property
    @abstractmethod
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """What makes a batch of rows."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Of the held-out data, with the adapters that are active now; mode and random state are left as they are."""

    @property
    def loss(self) -> "Callable[[Any, Tensor, Tensor | int | None], Tensor] | None":
        """What the loss is where it is not the model's own: of its output, the labels, and the labels of the step."""
        return None

    @property
    def sampling(self) -> Literal["random", "group_by_length"]:
        """How the Trainer draws the rows of a batch."""
        return "random"

    @property
    def largest(self) -> Sequence[int]:
        """The places in `train_data` of the rows that make the largest batch."""
        return range(self.config.batch_size)

    @classmethod
    def early_sketch(cls, config: RunConfig) -> Sketch | None:
        """The run without its values, from the settings alone, for planning its memory; None if it has to be opened.

        Raises:
            ConfigError: settings that do not fit the base.
        """
        return None

    def sketch(self) -> Sketch:
        """The opened run without its values, for planning its memory; called before an adapter is attached."""
        data, places = self.train_data, self.largest
        assert isinstance(data, Sized)
        batch = self.collator([data[i] for i in places if i < len(data)])
        return Sketch(on_meta(self.model), batch_on_meta(batch), padded=True)

    def distance(self) -> Distance | None:
        """How far the training data are from what the base expects; called before an adapter is attached.

        None where nothing is known of it.
        """
        return None

    def session(self, scratch: Path, console: Console | None) -> AbstractContextManager[None]:
        """What must hold while it trains, with the adapter attached.

        Args:
            scratch: a folder of its own, kept if the run is killed and deleted when it has ended.
            console: where to show progress.
        """
        return nullcontext()

    def save_beside(self, folder: Path) -> None:  # noqa: B027 (most tasks need nothing more)
        """Writes what a user needs beside the adapter, into the folder that has it."""

    @abstractmethod
    def usage(self, adapter: Path) -> str:
        """How to use the adapter, as Markdown for its card."""


def metric_rows(metrics: Sequence[Metric], *found: Evaluation) -> list[tuple[str, ...]]:
    """Rows of a table: the metric's title, and its value in each evaluation; those that none has are left out."""
    rows = []
    for metric in metrics:
        values = [each.scores.get(metric.key) for each in found]
        if any(value is not None for value in values):
            rows.append((metric.title, *map(metric.shown, values)))
    return rows
