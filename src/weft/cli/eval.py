"""``weft eval``: the base, and each adapter on it, on held-out rows, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import data_options as options
from weft.cli.adapters import adapter_path
from weft.cli.output import errors, print_json, quiet_transformers, results, table
from weft.cli.quantize import Quantization
from weft.tasks.settings.text import TextRun
from weft.training.config import DEFAULT_TASK, Quantize, RunConfig

if TYPE_CHECKING:
    from torch import nn

    from weft.data.text import Columns
    from weft.training.task import Evaluation, Metric


def evaluate(
    data: options.Data,
    base: Annotated[str, typer.Option(help="The base model: a folder, a hub id, or 'bundled'.")] = "bundled",
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="An adapter, the folder of a run, or a name in the library; repeat it for several."),
    ] = None,
    split: options.Split = "test",
    messages_column: options.MessagesColumn = "messages",
    prompt_column: options.PromptColumn = "prompt",
    completion_column: options.CompletionColumn = "completion",
    text_column: options.TextColumn = "text",
    max_length: options.MaxLength = None,
    generate_rows: Annotated[int, typer.Option(help="Rows to answer greedily, for the text metrics.", min=0)] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens in an answer at most.", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows at a time.", min=1)] = 8,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            help="Hold the base's linear layers in 8 bits (bitsandbytes). Default: as in the run, if there is one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and no table.")] = False,
) -> None:
    """Evaluate the base and each adapter on held-out rows: loss, and the metrics of the task.

    If the first adapter is a run's folder, its settings say what the task is, and how rows are read; the base is then
    the run's too. Of text, the base is that of the options; so are the columns, where they are given, and else the
    run's, as are the wording of prompts and the search for answers.
    """
    import weft
    from weft.training.task import metric_rows

    quiet_transformers()
    paths = [adapter_path(path) for path in adapter or []]
    kept = _settings_of_run(adapter[0]) if adapter else None
    held = quantize.setting if quantize is not None else kept.quantize if kept is not None else "none"
    if kept is None or kept.task == DEFAULT_TASK:
        columns = (messages_column, prompt_column, completion_column, text_column)
        run = kept if isinstance(kept, TextRun) else None
        subject = _text(base, run, held, data, split, columns, max_length, generate_rows, max_new_tokens, batch_size)
    else:
        base = kept.base
        subject = _of_run(kept, held, data, split)
    for number, path in enumerate(paths):
        weft.attach(subject.model, weft.load(path), name=f"adapter{number}")
    names: list[str | None] = [None, *(f"adapter{number}" for number in range(len(paths)))]
    found = []
    with errors().status("evaluating") as status:
        for number, name in enumerate(names):
            status.update(f"evaluating {number + 1} of {len(names)}")
            if paths:
                weft.activate(subject.model, name)
            found.append(subject.evaluate())
    if as_json:
        named = zip([None, *map(str, adapter or [])], found, strict=True)
        documents = [{"adapter": path, **result.to_dict()} for path, result in named]
        print_json({"base": base, "data": data, "results": documents})
        return
    out = results()
    out.print(f"{data}: {subject.report}", soft_wrap=True, markup=False)
    titles = (base, *map(str, adapter or []))
    out.print(table([("held out", *titles), *metric_rows(subject.metrics, *found)], right=titles))
    if found[0].samples and (kept is None or kept.task == DEFAULT_TASK):
        out.print(f"metrics of answers are from {len(found[0].samples)} of them")


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a model, and how."""

    model: "nn.Module"
    evaluate: "Callable[[], Evaluation]"
    metrics: "Sequence[Metric]"
    report: object


def _settings_of_run(path: Path) -> RunConfig | None:
    """The settings of a run, if the path is its folder."""
    config = path / "config.yaml"
    return RunConfig.from_yaml(config) if config.is_file() else None


def _of_run(kept: RunConfig, quantize: Quantize, data: str, split: str) -> _Subject:
    """The task of a run, with other held-out data."""
    changes = {"eval": data, "eval_split": split, "eval_share": None, "quantize": quantize}
    config = type(kept)(**(kept.model_dump() | changes)).resolved()
    task = config.implementation().open(config, None)
    return _Subject(task.model, task.evaluate, task.metrics, task.eval_report)


def _text(
    base: str,
    kept: TextRun | None,
    quantize: Quantize,
    data: str,
    split: str,
    columns: tuple[str, str, str, str],
    max_length: int | None,
    generate_rows: int,
    max_new_tokens: int,
    batch_size: int,
) -> _Subject:
    from weft.data.text import INPUT
    from weft.tasks import evaluate as evaluate_model
    from weft.tasks.language.generation import Decoding
    from weft.tasks.text import TextTask
    from weft.training import load_base

    loaded = load_base(base, quantize=quantize)
    prompt, decoding = INPUT, Decoding(max_new_tokens)
    if kept is not None:
        prompt = kept.prompt_template or INPUT
        decoding = Decoding(max_new_tokens, kept.num_beams, kept.length_penalty, kept.no_repeat_ngram_size)
    dataset = options.held_out(loaded, data, split, _columns(columns, kept), max_length, prompt)

    def evaluate_text() -> "Evaluation":
        return evaluate_model(
            loaded.model,
            loaded.tokenizer,
            dataset,
            batch_size=batch_size,
            generate_rows=generate_rows,
            decoding=decoding,
        )

    return _Subject(loaded.model, evaluate_text, TextTask.metrics, dataset.report)


def _columns(given: tuple[str, ...], kept: TextRun | None) -> "Columns":
    """The names that the options give; those that they leave as they are from the run, if there is one."""
    from weft.data.text import Columns

    if kept is None:
        return Columns(*given)
    usual = astuple(Columns())
    of_run = (kept.messages_column, kept.prompt_column, kept.completion_column, kept.text_column)
    return Columns(*(own if name == plain else name for name, plain, own in zip(given, usual, of_run, strict=True)))
