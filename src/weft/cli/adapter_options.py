"""The options that describe a new adapter, from the words of a shell to a `LoRAConfig`."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
import yaml

from weft.config import LoRAConfig, companion_names, initializer_names, scaling_names, variant_names
from weft.errors import ConfigError

_PANEL = "Adapter"

Rank = Annotated[int, typer.Option(help="r, the inner size of B A.", rich_help_panel=_PANEL)]
Alpha = Annotated[
    float, typer.Option(help="The numerator of the scaling, alpha / r by default.", rich_help_panel=_PANEL)
]
Targets = Annotated[
    list[str],
    typer.Option(
        help="Modules to adapt: `all-linear`, `all-layers`, a name or its end, a glob, or `re:REGEX`. Repeat, or "
        "separate by commas.",
        rich_help_panel=_PANEL,
    ),
]
Exclude = Annotated[
    list[str], typer.Option(help="Patterns of modules to leave alone.", rich_help_panel=_PANEL, show_default=False)
]
Layers = Annotated[
    list[str],
    typer.Option(
        help="Indices of the blocks to adapt, such as `0-3,7`; all by default.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
RankPattern = Annotated[
    list[str],
    typer.Option(
        help="Another rank for some modules: PATTERN=RANK. Repeat for more.", rich_help_panel=_PANEL, show_default=False
    ),
]
AlphaPattern = Annotated[
    list[str],
    typer.Option(
        help="Another alpha for some modules: PATTERN=ALPHA.", rich_help_panel=_PANEL, show_default=False
    ),
]  # fmt: skip
TrainModules = Annotated[
    list[str],
    typer.Option(
        help="Patterns of whole modules to train beside the factors, such as a classifier's head.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Bias = Annotated[
    str, typer.Option(help="Biases to train: none, adapted (of the adapted modules), or all.", rich_help_panel=_PANEL)
]
Init = Annotated[
    str, typer.Option(help=f"How the factors start: {', '.join(initializer_names)}.", rich_help_panel=_PANEL)
]
Variant = Annotated[
    str, typer.Option(help=f"How the factors change a layer: {', '.join(variant_names)}.", rich_help_panel=_PANEL)
]
Scaling = Annotated[
    str, typer.Option(help=f"How alpha and rank become s: {', '.join(scaling_names)}.", rich_help_panel=_PANEL)
]

Companions = Annotated[
    list[str],
    typer.Option(
        help=f"Small modules to train beside the factors: {', '.join(companion_names)}; or with settings, as "
        "'{name: prefix, length: 32}'. Repeat for more.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]

N = TypeVar("N", int, float)


def adapter_config(
    rank: int,
    alpha: float,
    targets: Sequence[str],
    exclude: Sequence[str],
    layers: Sequence[str],
    rank_pattern: Sequence[str],
    alpha_pattern: Sequence[str],
    train_modules: Sequence[str],
    bias: str,
    init: str,
    variant: str,
    scaling: str,
    beside: Sequence[str],
) -> LoRAConfig:
    """The configuration that the options describe.

    Raises:
        ConfigError: a value that cannot be; the message names the option.
    """
    return LoRAConfig.from_dict(
        {
            "rank": rank,
            "alpha": alpha,
            "targets": split(targets),
            "exclude": split(exclude),
            "layers": indices(layers),
            "rank_pattern": pairs("rank_pattern", rank_pattern, int),
            "alpha_pattern": pairs("alpha_pattern", alpha_pattern, float),
            "train_modules": split(train_modules),
            "bias": bias,
            "init": init,
            "variant": variant,
            "scaling": scaling,
            "companions": companions(beside),
        }
    )


def split(values: Sequence[str]) -> tuple[str, ...]:
    """Several values, repeated or separated by commas; a regular expression keeps its commas."""
    parts = [part for value in values for part in ([value] if value.startswith("re:") else value.split(","))]
    return tuple(part.strip() for part in parts if part.strip())


def companions(values: Sequence[str]) -> tuple[str | dict[str, Any], ...]:
    """Companions by name, repeated or separated by commas, or as YAML mappings."""
    found: list[str | dict[str, Any]] = []
    for value in values:
        found += [mapping("companions", value)] if value.startswith("{") else split([value])
    return tuple(found)


def mapping(setting: str, value: str) -> dict[str, Any]:
    """A choice with settings, such as ``{name: pissa, num_power_iters: 4}``."""
    try:
        return dict(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"{setting}: {value!r} is not YAML: {' '.join(str(error).split())}") from error


def indices(values: Sequence[str]) -> tuple[int, ...] | None:
    """Indices and ranges of them, such as ``0-3,7``; None if nothing is named."""
    if not values:
        return None
    found: list[int] = []
    for part in split(values):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"layers: expected indices such as 0,1 or 4-7, found {part!r}")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def pairs(setting: str, values: Sequence[str], number: Callable[[str], N]) -> dict[str, N]:
    """PATTERN=NUMBER, each as an entry of a mapping."""
    found: dict[str, N] = {}
    for value in values:
        pattern, _, text = value.rpartition("=")
        try:
            found[pattern] = number(text)
        except ValueError:
            pattern = ""
        if not pattern:
            raise ConfigError(f"{setting}: expected PATTERN={number.__name__}, found {value!r}")
    return found
