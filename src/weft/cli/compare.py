"""``weft compare``: ways of fine-tuning against each other on one task, under one budget."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from weft.cli.adapter_options import split
from weft.cli.output import errors, print_json, results, table
from weft.errors import ConfigError
from weft.training.config import RunConfig

_ALL = "full,lora,lora+prefix,prefix,prompt,bottleneck,bitfit"


def compare(
    run: Annotated[Path, typer.Argument(help="A YAML file of a run, as `weft train` takes it.", show_default=False)],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            "-m",
            help=f"What to compare: {_ALL}, dora; with a rank of its own as lora@4.",
            show_default="full,lora",
        ),
    ] = None,
    ranks: Annotated[
        list[str] | None, typer.Option(help="Ranks of the methods that have one, such as 1,4,16. Default: the run's.")
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(
            help="Learning rates to try: 1e-4,1e-3, or full=1e-5,1e-4 for one method; repeat it. Default: three about "
            "the method's usual one, and more where the best is at an end.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method at its best rate.", min=1)] = 3,
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="The comparison's folder.")] = Path("compare"),
    test: Annotated[
        str | None,
        typer.Option(help="Rows for the final figures, which choose nothing; as --eval of a run.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What decides, such as accuracy. Default: what the task keeps the best by.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the run in the place of the file's: max_steps=200. Repeat it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the runs that are there and go on; also to add methods or seeds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON document.")] = False,
) -> None:
    """Was LoRA the right choice? Train each method under the same budget, and see what it gains and costs.

    Every method gets the run's rows, steps and batches, its own learning rate from a sweep on the first seed, and runs
    of several seeds at that rate, each in a process of its own. The folder gets a README with the table and a picture,
    results.json, and the runs.

    Examples:

        weft compare run.yaml --methods full,lora --ranks 1,4,16 --test test.jsonl --output runs/compare

        weft compare run.yaml -m lora,lora+prefix,prefix,bottleneck,bitfit --seeds 5 --output runs/compare --resume
    """
    config = RunConfig.from_yaml(run, {"output": output, **dict(map(_setting, change or []))})

    from weft.compare import compare as compare_methods
    from weft.compare.report import setting, short_table, write
    from weft.compare.results import Results
    from weft.compare.verdict import remarks, sentences

    comparison = compare_methods(
        config,
        split(methods or ["full,lora"]),
        output=output,
        ranks=_ranks(ranks or []),
        rates=_rates(rates or []),
        seeds=seeds,
        test=test,
        metric=metric,
        resume=resume,
        console=errors(),
    )
    found = Results.of(comparison, _typed(run, methods, ranks, rates, seeds, test, metric, change))
    write(found, comparison.folder)
    if as_json:
        print_json(found.to_dict())
        return
    out = results()
    rows = short_table(found)
    out.print(setting(found), markup=False)
    out.print(table(rows, right=rows[0][1:]))
    for sentence in (*sentences(found), *remarks(found)):
        out.print(sentence, markup=False)
    out.print(f"written    {comparison.folder / 'README.md'}", soft_wrap=True, markup=False)


def _typed(
    run: Path,
    methods: list[str] | None,
    ranks: list[str] | None,
    rates: list[str] | None,
    seeds: int,
    test: str | None,
    metric: str | None,
    change: list[str] | None,
) -> str:
    """The command, for the record: paths by their last names."""
    options = {
        "--methods": methods,
        "--ranks": ranks,
        "--rates": rates,
        "--seeds": [str(seeds)],
        "--test": None if test is None else [Path(test).name],
        "--metric": None if metric is None else [metric],
        "--set": change,
    }
    words = [
        f"{name} {shlex.quote(_without_folders(value))}" for name, values in options.items() for value in values or ()
    ]
    return " ".join(["weft compare", run.name, *words])


def _without_folders(value: str) -> str:
    """A setting or path without the folders of an absolute path."""
    name, equals, path = value.rpartition("=")
    return f"{name}{equals}{Path(path).name if Path(path).is_absolute() else path}"


def _setting(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set: expected setting=value, such as max_steps=200, found {word!r}")
    try:
        return name.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: {value!r} is not YAML: {' '.join(str(error).split())}") from error


def _ranks(words: list[str]) -> list[int]:
    parts = split(words)
    if not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--ranks: expected whole numbers such as 1,4,16, found {','.join(words)!r}")
    return [int(part) for part in parts]


def _rates(words: list[str]) -> dict[str, list[float]]:
    """Method, or "" for all that are not named -> learning rates; ``auto`` says nothing."""
    found: dict[str, list[float]] = {}
    for word in words:
        name, equals, numbers = word.rpartition("=")
        if numbers == "auto":
            continue
        try:
            found[name if equals else ""] = [float(part) for part in split([numbers])]
        except ValueError:
            raise ConfigError(f"--rates: expected numbers such as 1e-4,1e-3, found {numbers!r}") from None
    return found
