"""Pseudo-labels: which unlabelled rows a model is sure of. What self-training asks of a task."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.data.rows import Row
from weft.training.self_training_config import SelfTrainingRun
from weft.training.task import Task


@dataclass(frozen=True)
class Unlabeled:
    """The rows that may get a pseudo-label, and how many may not.

    Attributes:
        rows: those that may.
        held_out: those left out because their text stands in the evaluation data.
        known: those left out because their text stands in the training data, with its label, or came before.
    """

    rows: Sequence[Row]
    held_out: int
    known: int


@dataclass(frozen=True)
class Guess:
    """What a model takes a row's label to be.

    Attributes:
        row: the row's columns, with the label.
        label: the label.
        confidence: how sure it is, from 0 to 1.
    """

    row: Mapping[str, Any]
    label: str
    confidence: float


class SelfTrainedTask(Task):
    """A task that can label rows by itself."""

    config: SelfTrainingRun

    @abstractmethod
    def unlabeled(self) -> Unlabeled:
        """The rows of the unlabelled data, without those that are evaluated.

        Raises:
            DataError: data that cannot be used.
        """

    @abstractmethod
    def guess(self, rows: Sequence[Row]) -> list[Guess]:
        """The label of each row, by the adapters that are active now, and how sure it is as `selection` measures it.

        Mode and random state are left as they are; what is drawn depends on the seed alone.

        Raises:
            ConfigError: consistency is asked of a model that drops nothing, so that every pass would be the same.
        """


def confident(guesses: Sequence[Guess], confidence: float, per_label: int | None = None) -> list[Guess]:
    """The guesses that are sure enough, in their order; of each label so many at most, the surest first."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, guess in enumerate(guesses):
        if guess.confidence >= confidence:
            by_label[guess.label].append(index)
    kept: list[int] = []
    for indices in by_label.values():
        kept += sorted(indices, key=lambda i: -guesses[i].confidence)[:per_label]
    return [guesses[i] for i in sorted(kept)]
