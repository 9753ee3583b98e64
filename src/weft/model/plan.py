"""What a configuration would do to a model, before anything is touched: modules, ranks, cost, and why."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from weft.companions import part_for
from weft.config import LoRAConfig
from weft.errors import TargetError
from weft.model.modules import Survey
from weft.model.targeting import add_sharing_modules, choose, companion_sites, further_biases, trained_modules
from weft.nn import VariantRule, layer_kind_of
from weft.patterns import first_match, matches, nothing_matched, open_index
from weft.variants import rule_for

_BYTES = 4  # factors are trained and saved in float32


@dataclass(frozen=True)
class PlannedModule:
    """One module that would be adapted.

    Attributes:
        path: where it stands.
        kind: its layer kind.
        shape: (out, in) of its factors.
        rank, alpha, scaling: of this module, patterns applied.
        bias: whether its bias would be trained.
        magnitudes: how many magnitudes the variant would train for it: DoRA one for each output.
        reason: the pattern that chose it.
        shares: the path of the module whose weight, and so whose factors, it shares; or None.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    rank: int
    alpha: float
    scaling: float
    bias: bool
    magnitudes: int
    reason: str
    shares: str | None

    @property
    def parameters(self) -> int:
        """Values trained for this module."""
        factors = 0 if self.shares else self.rank * sum(self.shape) + self.magnitudes
        return factors + (self.shape[0] if self.bias else 0)


@dataclass(frozen=True)
class PlannedCompanion:
    """One companion at one layer.

    Attributes:
        name: the companion's.
        beside: the path of the layer that it would stand beside.
        shapes: of its trained tensors, by name.
    """

    name: str
    beside: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Values trained for it."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Plan:
    """A dry run; print it.

    Attributes:
        config: the configuration.
        modules: what would be adapted, in the model's order.
        trained: path -> values, of the modules that would be trained whole.
        biases: path -> values, of the further biases that would be trained.
        skipped: path -> why, of layers that one might have expected to be adapted.
        base_parameters: the size of the base.
        companions: what would be trained beside layers, companion by companion.
    """

    config: LoRAConfig
    modules: tuple[PlannedModule, ...]
    trained: dict[str, int]
    biases: dict[str, int]
    skipped: dict[str, str]
    base_parameters: int
    companions: tuple[PlannedCompanion, ...] = ()

    @property
    def parameters(self) -> int:
        """Values that would be trained."""
        parts = [m.parameters for m in self.modules] + [c.parameters for c in self.companions]
        return sum(parts) + sum(self.trained.values()) + sum(self.biases.values())

    @property
    def share(self) -> float:
        """Trained values over the base's."""
        return self.parameters / self.base_parameters if self.base_parameters else 0.0

    @property
    def nbytes(self) -> int:
        """The size of the adapter's file, about: its values in float32."""
        return _BYTES * self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "share": self.share,
            "bytes": self.nbytes,
            "modules": [
                {"path": m.path, "kind": m.kind, "shape": list(m.shape), "rank": m.rank, "alpha": m.alpha,
                 "scaling": m.scaling, "bias": m.bias, "magnitudes": m.magnitudes, "parameters": m.parameters,
                 "reason": m.reason, "shares": m.shares}
                for m in self.modules
            ],
            "trained": self.trained,
            "biases": self.biases,
            "companions": [
                {"name": c.name, "beside": c.beside, "parameters": c.parameters,
                 "shapes": {name: list(shape) for name, shape in c.shapes.items()}}
                for c in self.companions
            ],
            "skipped": self.skipped,
        }  # fmt: skip

    def rows(self, *, each: bool = False) -> list[tuple[str, ...]]:
        """The lines of the table, its heading first.

        Args:
            each: a line for each module; otherwise one for modules that differ only in their block's index.
        """
        groups: dict[tuple[str, ...], list[PlannedModule]] = {}
        for m in self.modules:
            name = m.path if each else open_index(m.path)
            key = (name, m.kind, f"{m.shape[0]} x {m.shape[1]}", str(m.rank), f"{m.scaling:g}", m.reason)
            groups.setdefault(key, []).append(m)
        rows: list[tuple[str, ...]] = [
            ("modules", "count", "kind", "out x in", "rank", "scaling", "parameters", "because")
        ]
        for (name, kind, shape, rank, scaling, reason), members in groups.items():
            count = sum(m.parameters for m in members)
            rows.append((name, str(len(members)), kind, shape, rank, scaling, f"{count:,}", reason))
        for path, size in self.trained.items():
            rows.append((path, "1", "whole module", "", "", "", f"{size:,}", "train_modules"))
        if self.biases:
            rows.append(
                ("(biases)", str(len(self.biases)), "bias", "", "", "", f"{sum(self.biases.values()):,}", "bias")
            )
        beside: dict[tuple[str, str], list[int]] = {}
        for c in self.companions:
            beside.setdefault((c.beside if each else open_index(c.beside), c.name), []).append(c.parameters)
        for (name, companion), sizes in beside.items():
            rows.append((name, str(len(sizes)), companion, "", "", "", f"{sum(sizes):,}", "companions"))
        return rows

    def remarks(self) -> list[str]:
        """What the table leaves open: the totals, and what was left alone."""
        remarks = [
            f"{self.parameters:,} trained parameters in {self._places()}, {self.share:.2%} of "
            f"{self.base_parameters:,}; adapter file about {self.nbytes / 1e6:.1f} MB"
        ]
        magnitudes = sum(m.magnitudes for m in self.modules if m.shares is None)
        if magnitudes:
            remarks.append(f"{magnitudes:,} of them are magnitudes, one for each output of a module (variant=DoRA)")
        for reason, count in Counter(self.skipped.values()).items():
            first = next(path for path, why in self.skipped.items() if why == reason)
            others = f" and {count - 1} more" if count > 1 else ""
            remarks.append(f"left alone: {first}{others} ({reason})")
        return remarks

    def _places(self) -> str:
        companions = Counter(c.name for c in self.companions)
        places = [f"{len(self.modules)} modules"] if self.modules or not companions else []
        return " and ".join([*places, *(f"{count} x {name}" for name, count in companions.items())])

    def __str__(self) -> str:
        """The table and the remarks, as text."""
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, "", *self.remarks()])


def plan(model: nn.Module, config: LoRAConfig) -> Plan:
    """What attaching `config` to `model` would adapt, and what it would cost; touches nothing.

    Works on the meta device, so a model too large for this machine can be planned too.

    Raises:
        TargetError: a pattern matches nothing, or names a module that cannot be adapted; the message says why.
    """
    return plan_of(Survey(model), config)


def plan_of(survey: Survey, config: LoRAConfig) -> Plan:
    """As `plan`, from what a walk over the model found."""
    by_path, rule = survey.modules, rule_for(config.variant)
    modules = [(path, module) for path, module in by_path.items() if path]
    trained = trained_modules(modules, config)
    chosen, skipped = choose(survey, config, trained)
    shared_with = add_sharing_modules(survey, config, chosen)
    order = {path: place for place, (path, _) in enumerate(modules)}
    planned = tuple(
        _planned(path, by_path[path], config, rule, chosen[path], shared_with.get(path))
        for path in sorted(chosen, key=order.__getitem__)
    )
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, setting):
            if not any(matches(pattern, m.path) for m in planned):
                raise nothing_matched(setting, pattern, [m.path for m in planned])
    # A quantised weight is counted by its numbers: two of them can stand in one byte.
    base = {id(survey.parameters[name]): math.prod(value.shape) for name, value in survey.values.items()}
    companions = [
        PlannedCompanion(companion.name, path, part_for(companion).shapes(companion, site))
        for companion in config.companions
        for path, site in companion_sites(survey, config, companion, trained).items()
    ]
    made = Plan(
        config=config,
        modules=planned,
        trained={path: sum(p.numel() for p in by_path[path].parameters()) for path in trained},
        biases=further_biases(modules, config, set(chosen), trained),
        skipped=skipped,
        base_parameters=sum(base.values()),
        companions=tuple(companions),
    )
    if made.parameters == 0:
        raise TargetError(
            f"there would be nothing to train: targets is empty and bias={config.bias!r} finds no bias in this "
            f"{type(survey.model).__name__}; name targets, or add a companion"
        )
    return made


def _planned(
    path: str, module: nn.Module, config: LoRAConfig, rule: VariantRule, reason: str, shares: str | None
) -> PlannedModule:
    kind = layer_kind_of(module)
    assert kind is not None
    shape = kind.shape(module)
    owner = shares or path  # modules that share a weight share the factors, and so their rank
    rank_key, alpha_key = first_match(config.rank_pattern, owner), first_match(config.alpha_pattern, owner)
    rank = config.rank if rank_key is None else config.rank_pattern[rank_key]
    alpha = config.alpha if alpha_key is None else config.alpha_pattern[alpha_key]
    if rank > min(shape):
        raise TargetError(
            f"rank {rank} is larger than {path!r} ({shape[0]} x {shape[1]}) can use; "
            f"lower it to at most {min(shape)}, for this module alone with rank_pattern={{{path!r}: {min(shape)}}}"
        )
    bias = config.bias != "none" and module._parameters.get("bias") is not None
    magnitudes = shape[kind.output_dim] if rule.trains_magnitude else 0
    scaling = config.scaling(alpha, rank)
    return PlannedModule(path, kind.kind, shape, rank, alpha, scaling, bias, magnitudes, reason, shares)
