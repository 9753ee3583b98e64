"""``weft combine --method lorahub``: its options, the search with its progress, and what it found."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import errors, quiet_transformers, results, table
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.training import Composition
    from weft.training.weight_search import Trial, WeightSearch

METHOD = "lorahub"

_PANEL = "With --method lorahub"
_BAR = 20

BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The base model: a folder, a hub id, or `bundled` (the default).",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Examples = Annotated[
    str | None,
    typer.Option(help="A few rows of the new task, to weight by.", show_default=False, rich_help_panel=_PANEL),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        help="Other rows of it, that show what of the gain is real.", show_default=False, rich_help_panel=_PANEL
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Trials, each one pass over the examples. Default: ten for each adapter.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Bounds = Annotated[
    str | None,
    typer.Option(
        help="The smallest and the largest weight. Default: -1.5,1.5.", show_default=False, rich_help_panel=_PANEL
    ),
]
Penalty = Annotated[
    float | None,
    typer.Option(
        help="Of the sum of the weights' sizes, beside the loss. Default: 0.05.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Rows at a time. Default: 8.", min=1, show_default=False, rich_help_panel=_PANEL)
]
MessagesColumn = Annotated[
    str | None, typer.Option(help="The column of chat messages.", show_default=False, rich_help_panel=_PANEL)
]
PromptColumn = Annotated[
    str | None, typer.Option(help="The column of prompts.", show_default=False, rich_help_panel=_PANEL)
]
CompletionColumn = Annotated[
    str | None, typer.Option(help="The column of completions.", show_default=False, rich_help_panel=_PANEL)
]
TextColumn = Annotated[
    str | None, typer.Option(help="The column of plain text.", show_default=False, rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class SearchOptions:
    """What the command line says of a search; None where it says nothing."""

    base: str | None
    examples: str | None
    held_out: str | None
    budget: int | None
    bounds: str | None
    penalty: float | None
    batch_size: int | None
    messages_column: str | None
    prompt_column: str | None
    completion_column: str | None
    text_column: str | None

    def settings(self) -> "WeightSearch":
        """The settings of the search.

        Raises:
            ConfigError: some that cannot be.
        """
        from weft.training import WeightSearch

        default = WeightSearch()
        return WeightSearch(
            budget=self.budget,
            bounds=default.bounds if self.bounds is None else _bounds(self.bounds),
            penalty=default.penalty if self.penalty is None else self.penalty,
        )


def check(options: SearchOptions, others: Mapping[str, object]) -> None:
    """Raises ConfigError unless these options, and none of the others, describe a search."""
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"--{name}: the method {METHOD!r} finds the weights itself; leave it out")
    if options.examples is None:
        raise ConfigError(f"--examples: the method {METHOD!r} needs a few rows of the new task; name a file of them")
    options.settings()


def require_unused(options: SearchOptions, method: str) -> None:
    """Raises ConfigError if an option is given that a method other than this makes no use of."""
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')}: the method {method!r} takes no examples and no base; leave it out, or "
            f"say --method {METHOD}"
        )


def compose(
    adapters: Mapping[str, "Adapter"],
    options: SearchOptions,
    *,
    rank: int | None,
    energy: float | None,
    error: float | None,
    any_base: bool,
) -> "Composition":
    """Searches, showing the best loss so far; the limits are those of `weft.combine`.

    Raises:
        ConfigError, DataError, BaseMismatchError: as of `search_weights` and `load_text`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from weft.data.text import Columns, context_length, load_text
    from weft.training import load_base, search_weights

    settings = options.settings()
    total = settings.evaluations(len(adapters))
    quiet_transformers()
    base = load_base(options.base or "bundled")
    names = {
        "messages": options.messages_column,
        "prompt": options.prompt_column,
        "completion": options.completion_column,
        "text": options.text_column,
    }
    columns = Columns(**{name: value for name, value in names.items() if value is not None})
    examples, held_out = (
        None
        if source is None
        else load_text(source, base.tokenizer, split=split, columns=columns, max_length=context_length(base.model))
        for source, split in ((options.examples, "train"), (options.held_out, "test"))
    )
    assert examples is not None
    console = errors()
    shown = (
        TextColumn("searching"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, loss="")

        def progress(trial: "Trial", best: "Trial") -> None:
            bar.update(task, advance=1, loss=f"best loss {best.loss:.4f}")

        return search_weights(
            base,
            adapters,
            examples,
            held_out,
            settings=settings,
            rank=rank,
            energy=energy,
            error=error,
            batch_size=options.batch_size or 8,
            any_base=any_base,
            progress=progress,
        )


def show(found: "Composition") -> None:
    """Prints the weights and losses, and what the gain is."""
    measured = found.base.held_out is not None
    longest = max(abs(weight) for weight in found.weights.values()) or 1.0
    headings = ("", "weight", "", "examples", *(["held out"] if measured else []))
    rows: list[tuple[str, ...]] = [headings, _line("the base alone", found.base)]
    for name, losses in found.singles.items():
        weight = found.weights[name]
        bar = ("█" if weight > 0 else "░") * round(_BAR * abs(weight) / longest)
        rows.append(_line(name, losses, f"{weight:+.3f}", bar))
    rows.append(_line("equal weights", found.equal))
    rows.append(_line("the combination", found.combination))
    console = results()
    console.print(table(rows, right=("weight", "examples", "held out")))
    for sentence in verdict(found):
        console.print(sentence, markup=False, soft_wrap=True)


def verdict(found: "Composition") -> list[str]:
    """What the search gained over the best single adapter, in words; and where it did not."""
    on_examples, on_held_out = found.best_singles
    own, base, gain = found.combination, found.base, found.gain
    sentences = [f"on the examples: {_comparison(gain.examples, on_examples, base.examples - own.examples)}"]
    if on_held_out is None or gain.held_out is None or own.held_out is None or base.held_out is None:
        return [*sentences, "the weights were chosen by these examples; --held-out FILE shows what of it is real"]
    over_base = base.held_out - own.held_out
    return [*sentences, f"on the held-out rows: {_comparison(gain.held_out, on_held_out, over_base)}"]


def document(found: "Composition") -> dict[str, Any]:
    """The same as plain values, with every trial."""
    on_examples, on_held_out = found.best_singles
    return {
        "weights": dict(found.weights),
        "losses": {
            "base": found.base.to_dict(),
            "equal": found.equal.to_dict(),
            "adapters": {name: losses.to_dict() for name, losses in found.singles.items()},
            "combination": found.combination.to_dict(),
        },
        "best_single": {"examples": on_examples, "held_out": on_held_out},
        "gain": found.gain.to_dict(),
        "trials": [{"weights": list(trial.weights), "loss": trial.loss} for trial in found.search.trials],
    }


def _line(name: str, losses: Any, weight: str = "", bar: str = "") -> tuple[str, ...]:
    held_out = [] if losses.held_out is None else [f"{losses.held_out:.4f}"]
    return (name, weight, bar, f"{losses.examples:.4f}", *held_out)


def _comparison(gain: float, single: str, over_base: float) -> str:
    text = f"{_gain(gain)} than the best single adapter, {single}"
    if over_base < gain:  # the base alone is better than that adapter, so it is what there is to beat
        text += f"; {_gain(over_base)} than the base alone"
    return text if min(gain, over_base) > 0 else f"no gain: {text}"


def _gain(nats: float) -> str:
    return f"{abs(nats):.4f} nats a token {'better' if nats > 0 else 'worse'}"


def _bounds(text: str) -> tuple[float, float]:
    """Two numbers with a comma.

    Raises:
        ConfigError: it is something else.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"bounds: expected two numbers with a comma, such as -1.5,1.5; found {text!r}") from error
    return low, high
