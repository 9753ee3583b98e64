"""The card of a trained adapter: base, data, settings, results, samples, and how to use it."""

from collections.abc import Iterator

from weft.training.folder import RunFolder
from weft.training.result import RunResult
from weft.training.task import Evaluation, Task, metric_rows

_NOT_SHOWN = {
    "base", "output", "stand_in", "train", "eval", "eval_share", "train_split", "eval_split", "log_every", "eval_every",
    "save_every", "early_stopping", "keep_best", "tensorboard",
}  # fmt: skip
_SAMPLES, _LONGEST = 4, 600  # samples shown, and characters of each text


def card(task: Task, folder: RunFolder, result: RunResult) -> str:
    """The card as Markdown."""
    config = task.config
    settings = config.model_dump(mode="json")
    before, after = result.before, result.after
    lines = [
        f"# {result.folder.name}: a LoRA adapter for {config.base}",
        "",
        f"Trained with weft on `{config.train}` ({result.train_data}); {result.steps:,} steps, {result.trainable:,} "
        f"trained parameters, {result.share:.2%} of the base's.",
        "",
        "## Results",
        "",
    ]
    if before is not None and after is not None:
        held_out = f"`{config.eval}`" if config.eval is not None else f"{config.eval_share:.0%} of the rows"
        lines += [f"On {after.rows:,} held-out rows ({held_out}):", "", "| | base | with the adapter |"]
        lines += ["|---|---|---|", *(f"| {' | '.join(row)} |" for row in metric_rows(task.metrics, before, after))]
        if result.best_step is not None:
            lines += ["", f"The weights are those of step {result.best_step}, the best evaluation."]
    else:
        lines += ["No data was held out, so nothing is known of how well it does on rows it has not seen."]
    if result.distance is not None:
        lines += ["", "## Data and base", "", *(f"- {line}" for line in result.distance.lines())]
    lines += ["", "![losses](loss.png)"]
    if folder.metrics_plot.is_file():
        lines += ["", "![metrics](metrics.png)"]
    if after is not None and after.picture is not None:
        lines += ["", f"![pictures]({folder.pictures.name}/final.png)"]
    lines += ["", *_samples(before, after), "## Settings", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in settings.items() if name not in _NOT_SHOWN]
    lines += [
        "",
        "All of them are in `config.yaml`; `weft train config.yaml --output ANOTHER` is the same run again.",
        "",
        "## Use",
        "",
        task.usage(result.adapter),
        "",
    ]
    return "\n".join(lines)


def _samples(before: Evaluation | None, after: Evaluation | None) -> Iterator[str]:
    """A few held-out rows: what was asked, what was wanted, and what the base and the adapter answered."""
    if after is None or not after.samples:
        return
    answers = {sample.input: sample.answer for sample in (before.samples if before is not None else ())}
    yield from ("## Samples", "")
    for sample in after.samples[:_SAMPLES]:
        yield from _quoted("asked", sample.input)
        yield from _quoted("wanted", sample.reference)
        if sample.input in answers:
            yield from _quoted("base", answers[sample.input])
        yield from _quoted("with the adapter", sample.answer)
        yield from ("---", "")


def _quoted(title: str, text: str) -> Iterator[str]:
    """A text as it is, whatever it holds, in a fence that is longer than any of its own."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    fence = "`" * max(
        3, 1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    )
    yield from (f"{title}:", "", fence, text, fence, "")
