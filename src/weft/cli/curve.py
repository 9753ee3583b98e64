"""``weft curve``: what an adapter is worth at each lower rank, and the smallest rank that is worth as much."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import data_options as options
from weft.cli.adapter_options import split as split_words
from weft.cli.adapters import adapter_path
from weft.cli.output import errors, print_json, quiet_transformers, results, size, table
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.training.curve import RankCurve

_BAR = 10


def curve(
    adapter: Annotated[
        Path,
        typer.Argument(help="The adapter, the folder of a run, or a name in the library.", show_default=False),
    ],
    data: options.Data,
    base: Annotated[str, typer.Option(help="The base model: a folder, a hub id, or `bundled`.")] = "bundled",
    ranks: Annotated[
        str | None, typer.Option(help="Ranks to evaluate, such as 1,2,4,8. Default: powers of two.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="The share of the adapter's gain over the base that a lower rank may give up.")
    ] = 0.01,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--out", "-o", help="Write the adapter at the lowest such rank.", show_default=False),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve: .svg, .png or .pdf.", show_default=False)] = None,
    split: options.Split = "test",
    messages_column: options.MessagesColumn = "messages",
    prompt_column: options.PromptColumn = "prompt",
    completion_column: options.CompletionColumn = "completion",
    text_column: options.TextColumn = "text",
    max_length: options.MaxLength = None,
    batch_size: Annotated[int, typer.Option(help="Rows at a time.", min=1)] = 8,
    any_base: Annotated[bool, typer.Option("--any-base", help="Also an adapter that names another base.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Evaluate an adapter at each rank, without training it again, and keep the smallest that is as good.

    Rank k of an adapter is its best approximation of rank k, from the SVD of its factors; of one that was trained with
    `--nested`, it is the first k rows and columns of its factors. Rank 0 is the base alone. The loss is that of
    `weft eval`, in nats per learned token, on the same rows for every rank; the 95% intervals are of a bootstrap over
    the rows.

    Examples:

        weft curve runs/mine --data held-out.jsonl

        weft curve runs/mine --data held-out.jsonl --tolerance 0.02 --output small --plot curve.svg
    """
    from weft.data.text import Columns
    from weft.formats import load
    from weft.model.new_folder import check_output
    from weft.training import load_base
    from weft.training.curve import check_tolerance, chosen, rank_curve

    quiet_transformers()
    check_tolerance(tolerance)
    path = adapter_path(adapter)
    if output is not None:
        check_output(output, overwrite, keep=[path])
    if plot is not None:
        _check_plot(plot)
    given = None if ranks is None else _ranks(ranks)
    loaded = load(path)
    held = load_base(base)
    columns = Columns(messages_column, prompt_column, completion_column, text_column)
    dataset = options.held_out(held, data, split, columns, max_length)
    with errors().status("evaluating") as status:
        found = rank_curve(
            held.model,
            held.tokenizer,
            dataset,
            loaded,
            ranks=given,
            batch_size=batch_size,
            any_base=any_base,
            progress=lambda rank: status.update(f"evaluating rank {rank}"),
        )
    smallest = found.smallest(tolerance)
    rank = None if smallest is None else smallest.rank
    if plot is not None:
        from weft.analysis.plots import plot_rank_curve

        plot_rank_curve(found.to_dict()["points"], plot, rank)
    if as_json:
        document = {"adapter": str(adapter), "base": base, "data": data, **found.to_dict(), "tolerance": tolerance}
        print_json({**document, "smallest": rank})
    else:
        results().print(f"{data}: {dataset.report}", soft_wrap=True, markup=False)
        _show(found, rank, tolerance)
    if output is not None:
        chosen(loaded, found, tolerance, data=data, name=str(adapter)).save(output)
        errors().print(f"wrote {output}", markup=False, soft_wrap=True)


def _show(found: "RankCurve", smallest: int | None, tolerance: float) -> None:
    rows: list[tuple[str, ...]] = [("rank", "size", "loss", "over whole", "95% interval", "gain kept", "")]
    for point in found.points:
        kept = found.kept(point)
        is_whole = point is found.points[-1]
        rows.append(
            (
                f"{point.rank} *" if point.rank == smallest else f"{point.rank}",
                size(point.nbytes) if point.rank else "base",
                f"{point.loss:.4f}",
                "" if is_whole else f"{point.worse:+.4f}",
                "" if is_whole else "{:+.4f} to {:+.4f}".format(*point.worse_interval),
                "" if kept is None else f"{kept:.1%}",
                "" if kept is None else _bar(kept),
            )
        )
    out = results()
    out.print(table(rows, right=rows[0][1:-1]))
    factors = "the first of the nested factors" if found.order == "trained" else "the truncated SVD of the factors"
    lost = f"{tolerance:.3g} of the gain ({tolerance * found.gain:.4f} of {found.gain:.4f} nats)"
    verdict = (
        "it is not certain that the adapter gains anything on these rows, so no rank is chosen"
        if smallest is None
        else f"* the smallest rank that gives up at most {lost}, by the upper end of its interval"
    )
    out.print(
        f"loss: nats per learned token; every rank on the same {found.rows:,} rows; a rank is {factors}\n"
        f"interval: of the difference to the whole adapter, row by row; {found.resamples:,} bootstrap resamples of the "
        f"rows, seed {found.seed}\n{verdict}",
        markup=False,
        soft_wrap=True,
    )


def _bar(share: float) -> str:
    """A bar of eighths of a character."""
    whole, eighths = divmod(round(8 * _BAR * min(1.0, max(0.0, share))), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _ranks(words: str) -> list[int]:
    parts = split_words([words])
    if not parts or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--ranks: expected whole numbers such as 1,2,4,8, found {words!r}")
    return [int(part) for part in parts]


def _check_plot(plot: Path) -> None:
    """Raises ConfigError where no picture can be written, before minutes are spent on what it shows."""
    if plot.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--plot: expected a name that ends in .svg, .png or .pdf, found {str(plot)!r}")
    if not plot.absolute().parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {plot.absolute().parent}")
