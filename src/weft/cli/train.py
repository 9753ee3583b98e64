"""``weft train``: a run from a YAML file, from flags, or from both; the flags are made from the tasks' settings."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

from weft.cli.adapter_options import companions, indices, mapping, pairs, split
from weft.cli.output import errors, print_json, quiet_transformers, results, table
from weft.errors import ConfigError
from weft.training.config import RunConfig, run_settings
from weft.training.self_training_config import SelfTrainingRun

# Settings whose flag is repeated, or takes several values; and those that may carry settings of their own.
_SEVERAL: dict[str, Callable[[list[str]], Any]] = {
    "targets": split,
    "exclude": split,
    "train_modules": split,
    "label_names": split,
    "layers": indices,
    "rank_pattern": lambda values: pairs("rank_pattern", values, int),
    "alpha_pattern": lambda values: pairs("alpha_pattern", values, float),
    "companions": companions,
    "summary_column": split,
}
_TAGGED = ("init", "variant", "scaling")

# The first setting of each part of the help.
_PANELS = {
    "task": "Task, base and output",
    "train": "Data",
    "rank": "Adapter",
    "learning_rate": "Training",
    "log_every": "Metrics, evaluation and checkpoints",
}


def _train(
    run: Annotated[
        Path | None, typer.Argument(help="A YAML file with any of the settings below; with --resume, a run's folder.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the killed run in this folder, bit for bit.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in the output folder.")
    ] = False,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Try the run in seconds: a generated base and data stand in, for two steps."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, and no table.")] = False,
    **flags: Any,
) -> None:
    """Train an adapter: weft train run.yaml, or flags, or both (flags win)."""
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    config = _config(run, resume, {name: _parsed(name, value) for name, value in given.items()})

    from weft.training import run as train_run

    quiet_transformers()
    if tiny:
        from weft.tasks.tiny import tiny_run

        config = tiny_run(config)
    if isinstance(config, SelfTrainingRun) and config.unlabeled is not None:
        _self_train(config, resume, overwrite, as_json)
        return
    result = train_run(config, resume=resume, overwrite=overwrite, console=errors())
    if as_json:
        print_json(result.to_dict())
        return

    from weft.training.task import metric_rows

    out = results()
    out.print(f"data       {result.train_data}")
    out.print(f"trained    {result.trainable:,} parameters, {result.share:.2%} of the base's")
    pace = f", {result.seconds_per_step:.3f} s a step" if result.seconds_per_step is not None else ""
    out.print(f"steps      {result.steps:,} in {result.seconds:.1f} s{pace}")
    if result.before is not None and result.after is not None:
        heading = ("held out", "base", "with the adapter")
        out.print(
            table(
                [heading, *metric_rows(config.implementation().metrics, result.before, result.after)], right=heading[1:]
            )
        )
        if result.best_step is not None and result.best_step != result.steps:
            out.print(f"kept the weights of step {result.best_step}, the best evaluation")
    else:
        out.print("nothing was held out: give --eval FILE or --eval-share 0.05 to see how well it does")
    out.print(f"adapter    {result.adapter}", soft_wrap=True, markup=False)


def _self_train(config: SelfTrainingRun, resume: bool, overwrite: bool, as_json: bool) -> None:
    """The rounds of self-training, in one table, and whether anything was gained."""
    from weft.training import self_train

    result = self_train(config, resume=resume, overwrite=overwrite, console=errors())
    if as_json:
        print_json(result.to_dict())
        return
    heading, *rows = result.table(config.implementation().metrics)
    out = results()
    out.print(table([heading, *rows], right=heading[1:]))
    out.print(result.verdict, markup=False)
    out.print(f"adapter    {result.adapter}", soft_wrap=True, markup=False)


def _config(run: Path | None, resume: bool, flags: dict[str, Any]) -> RunConfig:
    if run is None:
        if resume and "output" not in flags:
            raise ConfigError("--resume: name the run's folder, or its YAML file")
        return RunConfig.from_dict(flags)
    if not run.is_dir():
        return RunConfig.from_yaml(run, flags)
    if not resume:
        raise ConfigError(f"{run} is a folder; to continue the run in it, add --resume; else name a YAML file")
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"there is no run to resume in {run}: it has no config.yaml")
    return RunConfig.from_yaml(run / "config.yaml", {"output": run, **flags})


def _parsed(name: str, value: Any) -> Any:
    """A flag's value as the setting takes it."""
    if name in _SEVERAL:
        return _SEVERAL[name](value)
    return mapping(name, value) if name in _TAGGED and value.startswith("{") else value


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that a setting takes, without None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(kind for kind in (typing.get_args(annotation) if union else (annotation,)) if kind is not type(None))


def _flag_type(name: str, annotation: Any) -> Any:
    """What typer is to read for a setting: a switch, several words, a number, or a word."""
    kinds = _members(annotation)
    if name in _SEVERAL:
        return list[str]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (bool, int, float, str, Path) else str


def _metavar(name: str, annotation: Any) -> str | None:
    """The choices of a setting that has a few."""
    if annotation is str and name == "task":
        return "|".join(run_settings)
    names: list[str] = []
    for kind in _members(annotation):
        if typing.get_origin(kind) is Literal:
            names += [str(choice) for choice in typing.get_args(kind)]
        elif kind is bool:
            names += ["true", "false"]
    return "|".join(names) or None


def _help(field: FieldInfo) -> str:
    assert field.description is not None
    if field.is_required() or field.default in (None, (), {}):
        return field.description
    default = "on" if field.default is True else "off" if field.default is False else field.default
    return f"{field.description} (default: {default})"


def _settings() -> Iterator[tuple[str, FieldInfo, str]]:
    """Every setting of every task once, with the part of the help that it belongs to."""
    panel = ""
    for name, field in RunConfig.model_fields.items():
        panel = _PANELS.get(name, panel)
        yield name, field, panel
    seen = set(RunConfig.model_fields)
    owners: dict[str, list[str]] = {}
    for task in run_settings:
        for name in run_settings[task].model_fields:
            owners.setdefault(name, []).append(task)
    for task in run_settings:
        for name, field in run_settings[task].model_fields.items():
            if name not in seen:
                seen.add(name)
                yield name, field, f"Task: {', '.join(owners[name])}"


def _parameters() -> Iterator[inspect.Parameter]:
    """A flag for each setting."""
    for name, field, panel in _settings():
        kind = _flag_type(name, field.annotation)
        dashed = name.replace("_", "-")
        option = typer.Option(
            f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}",
            help=_help(field),
            metavar=None if kind is bool else _metavar(name, field.annotation),
            show_default=False,
            rich_help_panel=panel,
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each setting of a run, in the place of its ``**flags``."""
    own = list(inspect.signature(command).parameters.values())[:-1]
    parameters = [*own, *_parameters()]
    command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__ = "train"
    return command


train = _with_flags(_train)
