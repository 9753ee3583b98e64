"""Self-training: a model labels rows itself, those that it is sure of are learned too, and so on for some rounds.

Lee, Pseudo-label, ICML workshop 2013; Xie et al., Self-training with noisy student, CVPR 2020 (arXiv 1911.04252): each
round trains a fresh adapter, on the labelled rows and on rows that the newest one has labelled; dropout is the noise.
"""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from weft.data.classification import label_counts
from weft.data.rows import read_rows
from weft.errors import ConfigError
from weft.formats import load
from weft.model import attach
from weft.model.new_folder import new_folder
from weft.training.config import RunConfig
from weft.training.folder import RunFolder, write_whole
from weft.training.job import check_same, run, uses_bf16
from weft.training.pseudo_labels import confident
from weft.training.result import RunResult
from weft.training.run_memory import move_to_device
from weft.training.self_training_config import SelfTrainingRun
from weft.training.task import Evaluation, Metric, metric_rows


@dataclass(frozen=True)
class PseudoLabels:
    """What became of the unlabelled rows in a round.

    Attributes:
        labels: label -> rows that got it and are learned.
        rows: unlabelled rows that could get one.
        held_out: rows left out because their text stands in the evaluation data.
        known: rows left out because their text stands in the training data, or came before.
    """

    labels: Mapping[str, int]
    rows: int
    held_out: int
    known: int

    @property
    def count(self) -> int:
        """Rows that got a label."""
        return sum(self.labels.values())

    def __str__(self) -> str:
        text = f"{self.count:,} of {self.rows:,} unlabelled rows are labelled"
        if self.count:
            text += f" ({label_counts(self.labels)})"
        if self.held_out:
            text += f"; {self.held_out:,} left out, since they are evaluated"
        return text


@dataclass(frozen=True)
class Round:
    """One round: what its run came to, and what it learned from beside the labelled rows; the first from nothing."""

    result: RunResult
    pseudo: PseudoLabels | None

    @property
    def after(self) -> Evaluation:
        """The evaluation with its adapter."""
        assert self.result.after is not None  # self-training is refused without held-out rows
        return self.result.after


@dataclass(frozen=True)
class SelfTrainingResult:
    """What self-training came to.

    Attributes:
        folder: its folder.
        adapter: the adapter that was kept.
        rounds: the rounds, that of the labelled rows alone first.
        ended: what was found for the round that there is not, because too little was sure; None if all took place.
        kept: the round whose adapter was kept; 0 if nothing was gained.
        metric: what they are compared by.
    """

    folder: Path
    adapter: Path
    rounds: Sequence[Round]
    ended: PseudoLabels | None
    kept: int
    metric: Metric

    @property
    def verdict(self) -> str:
        """Whether anything was gained, in a sentence."""
        if len(self.rounds) == 1:
            return (
                "no gain: the model was sure of no unlabelled row (lower confidence to learn from some); the adapter "
                "is that of the labelled rows alone"
            )
        key, shown, first = self.metric.key, self.metric.shown, self.rounds[0].after
        if self.kept == 0:
            best = max(self.rounds[1:], key=lambda each: _strength(each, self.metric)).after
            return (
                f"no gain: {self.metric.title} {shown(first.scores[key])} from the labelled rows alone, at best "
                f"{shown(best.scores[key])} with pseudo-labels, on {first.rows:,} held-out rows; the adapter is that "
                "of the labelled rows alone"
            )
        return (
            f"gain in round {self.kept}: {self.metric.title} {shown(first.scores[key])} -> "
            f"{shown(self.rounds[self.kept].after.scores[key])} on {first.rows:,} held-out rows. The best of several "
            "rounds looks better than it is: confirm it on rows that had no part in this"
        )

    def table(self, metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
        """The lines of a table, its heading first: a column for each round."""
        heading = ("held out", "labelled alone", *(f"round {number}" for number in range(1, len(self.rounds))))
        counts = ("" if each.pseudo is None else f"{each.pseudo.count:,}" for each in self.rounds)
        return [heading, ("pseudo-labels", *counts), *metric_rows(metrics, *(each.after for each in self.rounds))]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "adapter": str(self.adapter),
            "metric": self.metric.key,
            "gain": self.kept > 0,
            "kept": self.kept,
            "verdict": self.verdict,
            "rounds": [{"pseudo_labels": _plain(each.pseudo), **each.result.to_dict()} for each in self.rounds],
            "ended": _plain(self.ended),
        }


def self_train(
    config: SelfTrainingRun, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> SelfTrainingResult:
    """Trains on labelled rows, and then for some rounds also on unlabelled ones that the newest model is sure of.

    Each round is a run of its own, in ``rounds/N``, and starts a fresh adapter; all rows are labelled anew by the
    adapter of the round before. Rows whose text stands in the evaluation data never are. The adapter of the best round
    is kept; if none is better than the labelled rows alone, theirs is.

    A round is resumed bit for bit, as any run is; one that was finished is only evaluated again.

    Args:
        config: the settings, with ``unlabeled`` and ``eval``.
        resume, overwrite, console: as of `run`.

    Raises:
        ConfigError, DataError, TargetError, TrainingError: as of `run`; or no unlabelled data, or consistency is asked
            of a model that drops nothing.
    """
    if config.unlabeled is None:
        raise ConfigError("unlabeled: self-training needs unlabelled data; name some, or train without by run()")
    config = config.resolved()
    folder = RunFolder(config.output)
    if resume:
        check_same(config, folder)
    else:
        folder.start(config, overwrite=overwrite)
    try:
        first = _run(config, folder, 0, console)
    except Exception:
        if not resume and not any(folder.rounds.glob("*")):
            folder.clear()  # as a run that fails at its start
        raise
    rounds, ended = [Round(first, None)], None
    for number in range(1, config.rounds + 1):
        pseudo = _pseudo_labels(config, folder, number, console)
        if console is not None:
            console.print(f"round {number} of {config.rounds}: {pseudo}", markup=False)
        if pseudo.count == 0:
            ended = pseudo
            break
        rounds.append(Round(_run(config, folder, number, console), pseudo))
    task = config.implementation()
    metric = next(each for each in task.metrics if each.key == task.best)
    kept = max(range(len(rounds)), key=lambda i: _strength(rounds[i], metric))  # of equals, the first
    result = SelfTrainingResult(folder.root, folder.adapter, rounds, ended, kept, metric)
    with new_folder(folder.adapter) as fresh:
        shutil.copytree(rounds[kept].result.adapter, fresh, dirs_exist_ok=True)
    write_whole(folder.rounds / "result.json", json.dumps(result.to_dict(), indent=2))
    write_whole(folder.card, _card(result, task.metrics))
    return result


def _run(config: SelfTrainingRun, folder: RunFolder, number: int, console: Console | None) -> RunResult:
    """A round's run: on the labelled rows, or on these with the pseudo-labelled; one that was killed goes on."""
    output = folder.rounds / str(number)
    written = RunFolder(output).config
    changes: dict[str, Any] = {"unlabeled": None, "output": output}
    if number:
        changes |= {"train": str(_train_rows(folder, number)), "train_split": "train"}
    started = written.is_file()
    if started and number:  # the folder may have been moved, and the rows with it
        write_whole(written, RunConfig.from_yaml(written, {"train": changes["train"]}).to_yaml())
    return run(type(config)(**(config.model_dump() | changes)), resume=started, console=console)


def _train_rows(folder: RunFolder, number: int) -> Path:
    return folder.rounds / f"{number}.jsonl"


def _pseudo_labels(config: SelfTrainingRun, folder: RunFolder, number: int, console: Console | None) -> PseudoLabels:
    """Labels rows by the adapter of the round before, and writes those of the new round, the labelled ones first."""
    record = folder.rounds / f"{number}.json"
    if record.is_file():  # made before the run was killed: it is written when the rows are
        return PseudoLabels(**json.loads(record.read_text(encoding="utf-8")))
    task = config.implementation().open(config.model_copy(update={"bf16": uses_bf16(config)}), console)
    move_to_device(task.model)
    attach(task.model, load(RunFolder(folder.rounds / str(number - 1)).adapter), trainable=True)  # so that it drops
    found = task.unlabeled()
    chosen = confident(task.guess(found.rows), config.confidence, config.pseudo_per_label)
    labelled = [row.values for row in read_rows(config.train, config.train_split)]
    rows = [*labelled, *({**guess.row, "confidence": round(guess.confidence, 4)} for guess in chosen)]
    write_whole(_train_rows(folder, number), "".join(json.dumps(row, default=str) + "\n" for row in rows))
    pseudo = PseudoLabels(
        dict(sorted(Counter(guess.label for guess in chosen).items())), len(found.rows), found.held_out, found.known
    )
    write_whole(record, json.dumps(dataclasses.asdict(pseudo)))
    return pseudo


def _strength(each: Round, metric: Metric) -> float:
    """A round's metric, larger for better."""
    value = each.after.scores[metric.key]
    return value if metric.greater_is_better else -value


def _plain(pseudo: PseudoLabels | None) -> dict[str, Any] | None:
    return None if pseudo is None else dataclasses.asdict(pseudo)


def _card(result: SelfTrainingResult, metrics: Sequence[Metric]) -> str:
    """The card: what the rounds came to, and then that of the round that was kept."""
    heading, *rows = result.table(metrics)
    lines = [
        f"# {result.folder.name}: self-training",
        "",
        f"The verdict: {result.verdict}.",
        "",
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- round {i}: {each.pseudo}" for i, each in enumerate(result.rounds) if each.pseudo is not None),
        *([f"- then: {result.ended}"] if result.ended is not None else []),
        "",
        f"`adapter/` is that of `rounds/{result.kept}`, whose card is [there](rounds/{result.kept}/README.md).",
        "",
    ]
    return "\n".join(lines)
