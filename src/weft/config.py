"""What an adapter is to be: which modules, what rank, what scaling. Frozen values; imports no torch.

A choice that carries settings of its own is a tagged value (``init=PiSSA(num_power_iters=4)``,
``scaling=RankStabilized()``), so that a setting cannot stand beside a choice that ignores it. The
code that carries out a choice is registered for its type in `weft.init`, `weft.variants` and `weft.companions`.
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
        settings = {key: _plain(value) for key, value in dataclasses.asdict(self).items()}
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


class Companion(Choice):
    """A small module that an adapter trains beside its factors."""


initializer_names: Registry[type[Initializer]] = Registry("initializer")
variant_names: Registry[type[Variant]] = Registry("variant")
scaling_names: Registry[type[Scaling]] = Registry("scaling")
companion_names: Registry[type[Companion]] = Registry("companion")


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


@companion_names.register("prefix")
@dataclass(frozen=True)
class Prefix(Companion):
    """Learned keys and values that every head of every attention block attends to beside its own (Li and Liang, 2021).

    Beside, not among them: what the output projection reads is x + g softmax(q P_k^T / sqrt(d)) P_v, with a gate g for
    each head, which starts at 0 (Zhang et al., 2023, arXiv 2303.16199). A prefix among the keys is such a sum too, with
    a gate that depends on the input (He et al., 2022, arXiv 2110.04366, equation 7).

    Attributes:
        length: keys in each head.
        query, output: the names of the query projection and of the output projection, from their common module on,
            such as ``"self.query"`` and ``"output.dense"``; None for those that are known.
        heads: of an attention block; None reads it off the block.
    """

    name: ClassVar[str] = "prefix"
    length: int = 16
    query: str | None = None
    output: str | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        _require_count("prefix: length", self.length)
        if self.heads is not None:
            _require_count("prefix: heads", self.heads)
        if (self.query is None) != (self.output is None):
            raise ConfigError("prefix: query and output name the two projections of one block; give both, or neither")


@companion_names.register("bottleneck")
@dataclass(frozen=True)
class Bottleneck(Companion):
    """y + W_up f(W_down y + b_down) + b_up on the output y of each attention and feed-forward block, W_up and b_up zero
    at the start (Houlsby et al., 2019, arXiv 1902.00751; behind the feed-forward blocks alone, Pfeiffer et al., 2021).

    Attributes:
        width: of the bottleneck.
        activation: f.
        after: patterns of the linear layers whose output is y; the last ones of the known blocks if there are none.
    """

    name: ClassVar[str] = "bottleneck"
    width: int = 32
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_count("bottleneck: width", self.width)
        if self.activation not in ("gelu", "relu", "silu"):
            raise ConfigError(f"bottleneck: activation: expected 'gelu', 'relu' or 'silu', found {self.activation!r}")
        if isinstance(self.after, str):
            raise ConfigError(f"bottleneck: after: expected several patterns, found {self.after!r}; write a tuple")
        object.__setattr__(self, "after", tuple(self.after))


@companion_names.register("prompt")
@dataclass(frozen=True)
class Prompt(Companion):
    """Learned vectors before the input (Lester et al., 2021, arXiv 2104.08691); `weft.with_prompt` lays them there.

    Attributes:
        length: vectors.
        embedding: a pattern of the embedding that reads the input; None for the one that the model names.
    """

    name: ClassVar[str] = "prompt"
    length: int = 20
    embedding: str | None = None

    def __post_init__(self) -> None:
        _require_count("prompt: length", self.length)


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
            embedding and every convolution), a pattern, or several; none, ``()``, for an adapter without factors.
        exclude: patterns of modules to leave alone, stronger than `targets`.
        layers: indices of the blocks to adapt; None for all.
        rank_pattern: pattern -> rank, for the modules that it matches; the first match counts.
        alpha_pattern: pattern -> alpha, likewise.
        train_modules: patterns of whole modules (such as a classifier head) to train beside the factors.
        bias: which biases to train: none, those of the adapted modules, or all of the model's.
        init: how the factors start.
        variant: how the factors change the layer's output.
        scaling: how alpha and rank become s.
        companions: small modules to train beside the factors; `layers` and `exclude` hold for those in blocks too.

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
    companions: tuple[Companion, ...] = ()

    def __post_init__(self) -> None:
        for name in ("exclude", "layers", "train_modules", "companions"):
            value = getattr(self, name)
            if isinstance(value, str | int | Choice):
                raise ConfigError(f"{name}: expected several values, found {value!r}; write ({value!r},)")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets and not (self.companions or self.train_modules or self.bias == "all"):
            raise ConfigError(
                f'targets: nothing is named; name modules by a pattern, use "{ALL_LINEAR}", or give what else is to be '
                'trained: companions, train_modules or bias="all"'
            )
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
        for companion in self.companions:
            if not isinstance(companion, Companion):
                raise ConfigError(f"companions: expected values such as Prefix(length=16), found {companion!r}")
        names = [companion.name for companion in self.companions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"companions: {twice!r} is given {names.count(twice)} times; give each once")

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
        read = {k: choice_from(choices[k], v, k) if k in choices else _untuple(v) for k, v in values.items()}
        if isinstance(read.get("companions"), tuple):
            read["companions"] = tuple(choice_from(companion_names, v, "companions") for v in read["companions"])
        return cls(**read)


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
    return kind(**{key: _untuple(setting) for key, setting in settings.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.to_plain()
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _untuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require_count(setting: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{setting}: expected a whole number of at least 1, found {value!r}")
