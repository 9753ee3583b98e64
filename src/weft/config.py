"""What an adapter is to be: which modules, what rank, what scaling. Frozen values; imports no torch.

A choice that carries settings of its own is a tagged value (``init=PiSSA(num_power_iters=4)``,
``scaling=RankStabilized()``), so that a setting cannot stand beside a choice that ignores it. The
code that carries out a choice is registered for its type in `weft.init` and `weft.variants`.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from weft.errors import ConfigError, nearest
from weft.registry import Registry

ALL_LINEAR = "all-linear"
ALL_LAYERS = "all-layers"


@dataclass(frozen=True)
class Choice:
    """A tagged value of a configuration. `name` is how files and the command line spell it."""

    name: ClassVar[str]

    def to_plain(self) -> str | dict[str, Any]:
        """Its name, or where it has settings {"name": ..., settings}; the inverse of `choice_from`."""
        settings = dataclasses.asdict(self)
        return {"name": self.name, **settings} if settings else self.name


class Initializer(Choice):
    """How the factors of a new adapter start."""


class Variant(Choice):
    """How the factors change the layer's output."""


class Scaling(Choice, ABC):
    """How alpha and the rank become the factor before B A."""

    @abstractmethod
    def __call__(self, alpha: float, rank: int) -> float:
        """The scaling s of W' = W + s B A."""


initializer_names: Registry[type[Initializer]] = Registry("initializer")
variant_names: Registry[type[Variant]] = Registry("variant")
scaling_names: Registry[type[Scaling]] = Registry("scaling")


@initializer_names.register("kaiming")
@dataclass(frozen=True)
class Kaiming(Initializer):
    """A uniform as torch starts a linear layer, B zero (Hu et al., 2021; the released code's choice)."""

    name: ClassVar[str] = "kaiming"


@initializer_names.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Initializer):
    """A normal with standard deviation 1/rank, B zero (Hu et al., 2021, section 4.1)."""

    name: ClassVar[str] = "gaussian"


@initializer_names.register("pissa")
@dataclass(frozen=True)
class PiSSA(Initializer):
    """B A from the largest singular vectors of W (Meng et al., 2024, arXiv 2404.02948).

    W itself is not touched: the layer computes W + s (B A - B0 A0). With `num_power_iters` the SVD is
    randomised; None takes the full one.
    """

    name: ClassVar[str] = "pissa"
    num_power_iters: int | None = 4


@variant_names.register("lora")
@dataclass(frozen=True)
class LoRA(Variant):
    """W + s B A (Hu et al., 2021)."""

    name: ClassVar[str] = "lora"


@variant_names.register("dora")
@dataclass(frozen=True)
class DoRA(Variant):
    """m (W + s B A) / ||W + s B A|| with a trained magnitude m for each output (Liu et al., 2024, arXiv 2402.09353)."""

    name: ClassVar[str] = "dora"


@scaling_names.register("standard")
@dataclass(frozen=True)
class Standard(Scaling):
    """alpha / rank (Hu et al., 2021)."""

    name: ClassVar[str] = "standard"

    def __call__(self, alpha: float, rank: int) -> float:
        return alpha / rank


@scaling_names.register("rank_stabilized")
@dataclass(frozen=True)
class RankStabilized(Scaling):
    """alpha / sqrt(rank), which keeps the update's size as the rank grows (Kalajdzievski, 2023, arXiv 2312.03732)."""

    name: ClassVar[str] = "rank_stabilized"

    def __call__(self, alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The configuration of one adapter.

    Patterns name modules by path. A plain pattern matches a whole path or its end after a dot
    (``"q_proj"``, ``"self_attn.q_proj"``); one with ``*``, ``?`` or ``[`` is a glob over the whole path;
    one that starts with ``re:`` is a regular expression that must match the whole path.

    Attributes:
        rank: r, the inner size of B A.
        alpha: the numerator of the scaling; see `scaling`.
        dropout: the probability with which an entry of a layer's input is left out of the adapter's branch.
        targets: ``"all-linear"`` (every linear layer but the output head), ``"all-layers"`` (those, the head, every
            embedding and every convolution), a pattern, or several.
        exclude: patterns of modules to leave alone, stronger than `targets`.
        layers: indices of the blocks to adapt; None for all.
        rank_pattern: pattern -> rank, for the modules that it matches; the first match counts.
        alpha_pattern: pattern -> alpha, likewise.
        train_modules: patterns of whole modules (such as a classifier head) to train beside the factors.
        bias: which biases to train: none, those of the adapted modules, or all of the model's.
        init: how the factors start.
        variant: how the factors change the layer's output.
        scaling: how alpha and rank become s.

    Raises:
        ConfigError: a value that cannot be; the message names the field.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    train_modules: tuple[str, ...] = ()
    bias: Literal["none", "adapted", "all"] = "none"
    init: Initializer = Kaiming()
    variant: Variant = LoRA()
    scaling: Scaling = Standard()

    def __post_init__(self) -> None:
        for name in ("exclude", "layers", "train_modules"):
            value = getattr(self, name)
            if isinstance(value, str | int):
                raise ConfigError(f"{name}: expected several values, found {value!r}; write ({value!r},)")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise ConfigError(f'targets: nothing is named; name modules by a pattern, or use "{ALL_LINEAR}"')
        for name, rank in {
            "rank": self.rank,
            **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()},
        }.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, found {rank!r}")
        for name, alpha in {
            "alpha": self.alpha,
            **{f"alpha_pattern[{k!r}]": v for k, v in self.alpha_pattern.items()},
        }.items():
            if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or alpha == 0:
                raise ConfigError(f"{name}: expected a finite number other than 0, found {alpha!r}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected a number from 0 up to, but not, 1, found {self.dropout!r}")
        if self.bias not in ("none", "adapted", "all"):
            raise ConfigError(f"bias: expected 'none', 'adapted' or 'all', found {self.bias!r}")
        for name, kind, called in (
            ("init", Initializer, "an initializer"),
            ("variant", Variant, "a variant"),
            ("scaling", Scaling, "a scaling"),
        ):
            if not isinstance(getattr(self, name), kind):
                value = getattr(self, name)
                raise ConfigError(f"{name}: expected {called} such as {_EXAMPLES[name]}, found {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML: tagged values become a name, or {name, settings}."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoRAConfig":
        """The inverse of `to_dict`; an unknown key is an error that names the nearest."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown setting {key!r} of an adapter{nearest(key, known)}")
        choices: dict[str, Registry[Any]] = {
            "init": initializer_names,
            "variant": variant_names,
            "scaling": scaling_names,
        }
        return cls(**{k: choice_from(choices[k], v, k) if k in choices else _untuple(v) for k, v in values.items()})


_EXAMPLES = {"init": "PiSSA(num_power_iters=4)", "variant": "LoRA()", "scaling": "RankStabilized()"}

C = TypeVar("C", bound=Choice)


def choice_from(names: Registry[type[C]], value: Any, setting: str) -> C:
    """A tagged value from a name, a {name, settings} mapping, or itself."""
    if isinstance(value, Choice):
        return value  # type: ignore[return-value]
    settings = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{setting}: expected a name, or a mapping with a name, found {value!r}")
    kind = names[name]
    known = [f.name for f in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{setting} {name!r} has no setting {key!r}{nearest(key, known)}")
    return kind(**settings)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.to_plain()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _untuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
