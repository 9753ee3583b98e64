"""`Adapter`: a LoRA adapter as a value. Files, algebra, analysis and servers speak only of this.

An adapter holds its configuration, a factor pair for each adapted module, the other tensors that were
trained, the fingerprint of the base it was made for, and where it came from. Only `weft.model` ties it
to a live model.

Adapters of one base add up as the changes of its weights do: `a + b`, `a - b`, `0.5 * a`, exactly, from
their factors alone; `inner` and `norm` measure them there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from weft.config import LoRAConfig, Standard
from weft.errors import BaseMismatchError, ConfigError
from weft.fingerprint import Fingerprint
from weft.linalg import LowRank
from weft.registry import Registry


@dataclass(frozen=True)
class Layout:
    """How the matrix of a factor pair lies in the weight that it changes.

    | kind | B | A | the matrix B A |
    |---|---|---|---|
    | linear | (out, r) | (r, in) | the map (out, in); GPT-2's Conv1D stores its transpose |
    | embedding | (V, r) | (r, d) | the table (V, d) itself |
    | conv | (out, r) | (r, in/groups * prod(kernel)) | the weight (out, in/groups, *kernel), flattened |

    Attributes:
        kind: the layer kind's name.
        kernel: the kernel's size, for a convolution.
        groups: the convolution's groups.
    """

    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA adapter.

    Attributes:
        config: what was asked for; the ranks and scalings that hold are those of `factors`.
        factors: module path -> factor pair, the change s B A of that module's weight.
        layouts: module path -> how that change lies in the weight; the same keys as `factors`.
        tensors: parameter path -> tensor trained as a whole (biases, classifier heads). The weight of a module with
            factors is no trained tensor but a copy of the base's, as some files bring one: attaching checks it.
        magnitudes: module path -> one trained number for each output, of a variant such as DoRA that has them.
        companions: path -> trained tensor of a small module beside the base's. The path is the layer's that it stands
            beside, the companion's name, and the tensor's: ``"layers.0.self_attn.o_proj.prefix.keys"``.
        base: the base's fingerprint, if it is known.
        provenance: plain values about the origin: the base's name, the task, the weft version.
    """

    config: LoRAConfig
    factors: Mapping[str, LowRank]
    layouts: Mapping[str, Layout]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    base: Fingerprint | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    companions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unequal = self.factors.keys() ^ self.layouts.keys()
        if unequal:
            raise ConfigError(f"factors and layouts name different modules, first {min(unequal)!r}; give each one both")
        strays = self.magnitudes.keys() - self.factors.keys()
        if strays:
            raise ConfigError(f"magnitudes: {min(strays)!r} has no factors; name modules that have them")
        names = [companion.name for companion in self.config.companions]
        unknown = [key for key in self.companions if key.split(".")[-2:-1] not in [[name] for name in names]]
        if unknown:
            raise ConfigError(
                f"companions: {unknown[0]!r} is of none that the configuration names ({', '.join(names) or 'none'})"
            )

    @property
    def num_parameters(self) -> int:
        """The number of trained values."""
        pairs = sum(f.B.numel() + f.A.numel() for f in self.factors.values())
        return pairs + sum(t.numel() for t in self._beside())

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        pairs = sum(f.B.nbytes + f.A.nbytes for f in self.factors.values())
        return pairs + sum(t.nbytes for t in self._beside())

    def _beside(self) -> Iterator[Tensor]:
        """What was trained beside the factors."""
        yield from self.tensors.values()
        yield from self.magnitudes.values()
        yield from self.companions.values()

    def __add__(self, other: "Adapter") -> "Adapter":
        if not isinstance(other, Adapter):
            return NotImplemented
        return weighted_sum([self, other], [1.0, 1.0])

    def __sub__(self, other: "Adapter") -> "Adapter":
        if not isinstance(other, Adapter):
            return NotImplemented
        return weighted_sum([self, other], [1.0, -1.0])

    def __mul__(self, factor: float) -> "Adapter":
        if not isinstance(factor, Real):
            return NotImplemented
        return weighted_sum([self], [float(factor)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Adapter":
        if not isinstance(divisor, Real):
            return NotImplemented
        return weighted_sum([self], [1 / float(divisor)])

    def __neg__(self) -> "Adapter":
        return self * -1.0

    def norm(self) -> float:
        """The Frobenius norm of the whole change: the root of the sum of ||s B A||^2 over the adapted weights."""
        distinct = {id(factors): factors for factors in self.factors.values()}
        return math.sqrt(math.fsum(float(factors.norm()) ** 2 for factors in distinct.values()))

    def save(self, path: str | Path, format: str = "peft") -> Path:
        """Writes the adapter to `path`, complete or not at all, and returns the path.

        Args:
            path: the folder (or file, as the format has it) to write.
            format: a registered file format.

        Raises:
            FormatError: the format cannot hold this adapter, or the disk did not take it.
            ConfigError: there is no such format.
        """
        return file_formats[format].save(self, Path(path))

    def __repr__(self) -> str:
        ranks = sorted({f.rank for f in self.factors.values()})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no factors"
        beside = "".join(f", {companion.name}" for companion in self.config.companions) if self.companions else ""
        return f"Adapter({len(self.factors)} modules, {rank}{beside}, {self.num_parameters:,} parameters)"


def weighted_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The adapter whose change of every weight is the weighted sum of theirs, without any rounding but its own.

    Ranks add up; a module that an adapter does not change gets nothing from it, and one of weight 0 leaves no
    trace. Tensors trained whole replace the base's, whose values are not known here: their sum is a change of the
    base only where every adapter has them and the weights sum to 1.

    Raises:
        BaseMismatchError: the adapters were made for different bases.
        ConfigError: weights that do not fit, modules of different shapes, magnitudes (DoRA's change is no sum), or
            tensors trained whole whose sum is not defined.
    """
    weights = checked_weights(adapters, weights)
    require_summable(adapters)
    sums: dict[tuple[int, ...], LowRank] = {}  # what modules share stays shared
    factors: dict[str, LowRank] = {}
    for path in union_of_paths(adapters):
        terms = [adapter.factors.get(path) for adapter in adapters]
        key = tuple(map(id, terms))
        if key not in sums:
            sums[key] = weighted_terms(terms, weights)
        factors[path] = sums[key]
    return joined(adapters, factors, summed_tensors(adapters, weights))


def weighted_terms(terms: Sequence[LowRank | None], weights: Sequence[float]) -> LowRank:
    """The weighted sum, exactly: the factors side by side. Terms of weight 0 are left out, if others remain."""
    present = [(term, weight) for term, weight in zip(terms, weights, strict=True) if term is not None]
    first, *others = (weight * term for term, weight in [p for p in present if p[1] != 0] or present[:1])
    return first.concat(*others) if others else first


def inner(a: Adapter, b: Adapter) -> float:
    """The Frobenius inner product of the two changes, summed over the weights that both adapt.

    Raises:
        BaseMismatchError, ConfigError: as for their sum.
    """
    require_summable([a, b])
    common = {(id(a.factors[path]), id(b.factors[path])): path for path in a.factors if path in b.factors}
    return math.fsum(float(a.factors[path].inner(b.factors[path])) for path in common.values())


def union_of_paths(adapters: Sequence[Adapter]) -> list[str]:
    """The modules that any of them changes, in their order."""
    return list(dict.fromkeys(path for adapter in adapters for path in adapter.factors))


def checked_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[float]:
    """The weights as floats.

    Raises:
        ConfigError: there is no adapter, the number of weights is another, or one is not a finite number.
    """
    if not adapters:
        raise ConfigError("adapters: there is none; give at least one")
    if len(weights) != len(adapters):
        raise ConfigError(f"weights: found {len(weights)} for {len(adapters)} adapters; give one for each")
    wrong = [w for w in weights if not isinstance(w, Real) or not math.isfinite(w)]
    if wrong:
        raise ConfigError(f"weights: expected finite numbers, found {wrong[0]!r}")
    return [float(w) for w in weights]


def require_summable(adapters: Sequence[Adapter], any_base: bool = False) -> None:
    """Raises BaseMismatchError or ConfigError unless the changes of these adapters live in one space."""
    if not any_base:
        _require_one_base(adapters)
    for number, adapter in enumerate(adapters, 1):
        if adapter.companions:
            names = " and ".join(companion.name for companion in adapter.config.companions)
            raise ConfigError(
                f"adapter {number} has a companion ({names}), whose change of an output is no change of a weight, so "
                "that it cannot be summed; leave it out (companions={}), or attach the adapters side by side"
            )
        if adapter.magnitudes:
            raise ConfigError(
                f"adapter {number} has trained magnitudes ({adapter.config.variant.name}), so that its change of a "
                "weight depends on the weight; merge it into the base and extract the difference instead"
            )
    for path in union_of_paths(adapters):
        found = {
            (adapter.factors[path].shape, adapter.layouts[path]): number
            for number, adapter in reversed(list(enumerate(adapters, 1)))
            if path in adapter.factors
        }
        if len(found) > 1:
            each = ", ".join(
                f"{layout.kind} {shape[0]} x {shape[1]} in adapter {number}"
                for (shape, layout), number in sorted(found.items(), key=lambda item: item[1])
            )
            raise ConfigError(f"{path} has different shapes: {each}; these adapters are of different models")


def _require_one_base(adapters: Sequence[Adapter]) -> None:
    known = [(number, adapter.base) for number, adapter in enumerate(adapters, 1) if adapter.base is not None]
    for (i, one), (j, other) in pairwise(known):
        difference = one.difference(other)
        if difference is not None:
            named = [f"adapter {n} ({adapters[n - 1].provenance.get('base', 'base not named')})" for n in (i, j)]
            raise BaseMismatchError(
                f"{named[0]} and {named[1]} were made for different bases: of the second, {difference}; "
                "combine adapters of one base"
            )


def summed_tensors(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sums of the tensors trained whole.

    Raises:
        ConfigError: an adapter lacks one, their shapes differ, or the weights do not sum to 1.
    """
    names = dict.fromkeys(name for adapter in adapters for name in _whole(adapter))
    if not names:
        return {}
    remedy = "leave out what was trained whole (tensors={}, --factors-only), or give weights that sum to 1"
    if not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise ConfigError(
            f"{next(iter(names))} was trained whole, and what it was in the base is not known here, so that it can "
            f"only be averaged; the weights sum to {math.fsum(weights):g}. To go on, {remedy}"
        )
    sums = {}
    for name in names:
        terms = [adapter.tensors[name] for adapter in adapters if name in adapter.tensors]
        if len(terms) < len(adapters):
            raise ConfigError(
                f"{name} was trained whole in {len(terms)} of {len(adapters)} adapters, and what it is in the base is "
                "not known here; combine adapters that all have it, or leave it out (tensors={}, --factors-only)"
            )
        if len({term.shape for term in terms}) > 1:
            raise ConfigError(f"{name} has different shapes: {', '.join(str(tuple(term.shape)) for term in terms)}")
        wide = sum(weight * term.double() for term, weight in zip(terms, weights, strict=True))
        assert isinstance(wide, Tensor)
        sums[name] = wide.to(terms[0].dtype)
    return sums


def joined(adapters: Sequence[Adapter], factors: Mapping[str, LowRank], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter with these factors and tensors, and of all else what the given adapters have in common."""
    origins = [adapter.provenance for adapter in adapters]
    shared = {key: value for key, value in origins[0].items() if all(o.get(key) == value for o in origins)}
    layouts = {path: layout for adapter in adapters for path, layout in adapter.layouts.items()}
    return Adapter(
        config=_joint_config([adapter.config for adapter in adapters], factors),
        factors=factors,
        layouts={path: layouts[path] for path in factors},
        tensors=tensors,
        base=next((adapter.base for adapter in adapters if adapter.base is not None), None),
        provenance={key: value for key, value in shared.items() if key not in ("lineage", "steps")},  # of one run alone
    )


def _joint_config(configs: Sequence[LoRAConfig], factors: Mapping[str, LowRank]) -> LoRAConfig:
    """A configuration that describes `factors`: the ranks and scalings that hold are theirs, whatever stands here."""
    rank = max((value.rank for value in factors.values()), default=configs[0].rank)
    same = all(config.targets == configs[0].targets for config in configs)
    return replace(
        configs[0],
        rank=rank,
        alpha=float(rank),
        rank_pattern={},
        alpha_pattern={},
        scaling=Standard(),
        targets=configs[0].targets if same or not factors else tuple(factors),
        exclude=configs[0].exclude if same else (),
        layers=configs[0].layers if same else None,
        train_modules=tuple(dict.fromkeys(pattern for config in configs for pattern in config.train_modules)),
        companions=(),  # a sum has none
    )


def _whole(adapter: Adapter) -> list[str]:
    """The tensors trained whole, without copies of weights that the factors change."""
    return [name for name in adapter.tensors if name.removesuffix(".weight") not in adapter.factors]


class FileFormat(Protocol):
    """A file format of adapters; register one in `file_formats`."""

    def recognises(self, path: Path) -> bool:
        """Whether what stands at `path` looks like this format."""

    def save(self, adapter: Adapter, path: Path) -> Path:
        """Writes an adapter, complete or not at all."""

    def load(self, path: Path) -> Adapter:
        """Reads an adapter, complete or not at all."""


file_formats: Registry[FileFormat] = Registry("file format", home="weft.formats")
