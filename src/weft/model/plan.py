"""What a configuration would do to a model, before anything is touched: modules, ranks, cost, and why."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weft.config import ALL_LINEAR, LoRAConfig
from weft.errors import TargetError
from weft.model.modules import base_modules, base_parameters, output_heads, sharing
from weft.model.patterns import block_index, first_match, matches, nothing_matched
from weft.nn import Adapted, BiasLayer, LoRALayer, ReplacedModule, layer_kind_of
from weft.nn.bank import foreign_forward

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
    reason: str
    shares: str | None

    @property
    def parameters(self) -> int:
        """Values trained for this module."""
        factors = 0 if self.shares else self.rank * sum(self.shape)
        return factors + (self.shape[0] if self.bias else 0)


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
    """

    config: LoRAConfig
    modules: tuple[PlannedModule, ...]
    trained: dict[str, int]
    biases: dict[str, int]
    skipped: dict[str, str]
    base_parameters: int

    @property
    def parameters(self) -> int:
        """Values that would be trained."""
        return sum(m.parameters for m in self.modules) + sum(self.trained.values()) + sum(self.biases.values())

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
                 "scaling": m.scaling, "bias": m.bias, "parameters": m.parameters, "reason": m.reason,
                 "shares": m.shares}
                for m in self.modules
            ],
            "trained": self.trained,
            "biases": self.biases,
            "skipped": self.skipped,
        }  # fmt: skip

    def __str__(self) -> str:
        """A table, one line for modules that differ only in their block's index."""
        groups: dict[tuple[str, ...], list[PlannedModule]] = {}
        for m in self.modules:
            name = ".".join("*" if part.isdigit() else part for part in m.path.split("."))
            key = (name, m.kind, f"{m.shape[0]} x {m.shape[1]}", str(m.rank), f"{m.scaling:g}", m.reason)
            groups.setdefault(key, []).append(m)
        rows = [("modules", "count", "kind", "out x in", "rank", "scaling", "parameters", "because")]
        for (name, kind, shape, rank, scaling, reason), members in groups.items():
            count = sum(m.parameters for m in members)
            rows.append((name, str(len(members)), kind, shape, rank, scaling, f"{count:,}", reason))
        for path, size in self.trained.items():
            rows.append((path, "1", "whole module", "", "", "", f"{size:,}", "train_modules"))
        if self.biases:
            rows.append(
                ("(biases)", str(len(self.biases)), "bias", "", "", "", f"{sum(self.biases.values()):,}", "bias")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        lines.append("")
        lines.append(
            f"{self.parameters:,} trained parameters in {len(self.modules)} modules, {self.share:.2%} of "
            f"{self.base_parameters:,}; adapter file about {self.nbytes / 1e6:.1f} MB"
        )
        for reason, count in Counter(self.skipped.values()).items():
            first = next(path for path, why in self.skipped.items() if why == reason)
            others = f" and {count - 1} more" if count > 1 else ""
            lines.append(f"left alone: {first}{others} ({reason})")
        return "\n".join(lines)


def plan(model: nn.Module, config: LoRAConfig) -> Plan:
    """What attaching `config` to `model` would adapt, and what it would cost; touches nothing.

    Works on the meta device, so a model too large for this machine can be planned too.

    Raises:
        TargetError: a pattern matches nothing, or names a module that cannot be adapted; the message says why.
    """
    modules = [(path, module) for path, module in base_modules(model) if path]
    by_path = dict(modules)
    trained = _trained_modules(modules, config)
    chosen, skipped = _choose(model, modules, config, trained)
    shared_with = _add_sharing_modules(model, by_path, config, chosen)
    order = {path: place for place, (path, _) in enumerate(modules)}
    planned = tuple(
        _planned(path, by_path[path], config, chosen[path], shared_with.get(path))
        for path in sorted(chosen, key=order.__getitem__)
    )
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, setting):
            if not any(matches(pattern, m.path) for m in planned):
                raise nothing_matched(setting, pattern, [m.path for m in planned])
    base = {id(p): p.numel() for p in base_parameters(model).values()}
    return Plan(
        config=config,
        modules=planned,
        trained={path: sum(p.numel() for p in by_path[path].parameters()) for path in trained},
        biases=_biases(modules, config, set(chosen), trained),
        skipped=skipped,
        base_parameters=sum(base.values()),
    )


def _trained_modules(modules: list[tuple[str, nn.Module]], config: LoRAConfig) -> list[str]:
    """The paths of the modules to train whole, outermost only."""
    found: list[str] = []
    for pattern in config.train_modules:
        hits = [path for path, _ in modules if matches(pattern, path)]
        if not hits:
            raise nothing_matched("train_modules", pattern, [path for path, _ in modules])
        found += hits
    outermost = [p for p in dict.fromkeys(found) if not any(p.startswith(f"{other}.") for other in found)]
    for path, module in modules:
        if path in outermost and not isinstance(module, ReplacedModule):
            inner = next((p for p, part in base_modules(module, path) if isinstance(part, Adapted)), None)
            if inner is not None:
                raise TargetError(f"train_modules: {path!r} holds {inner!r}, which carries an adapter already")
            if not any(True for _ in module.parameters()):
                raise TargetError(f"train_modules: {path!r} ({type(module).__name__}) has no parameters to train")
    return outermost


def _choose(
    model: nn.Module, modules: list[tuple[str, nn.Module]], config: LoRAConfig, trained: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """path -> the pattern that chose it, and path -> why it was skipped."""
    targets = (config.targets,) if isinstance(config.targets, str) else config.targets
    patterns = [pattern for pattern in targets if pattern != ALL_LINEAR]
    all_linear = len(patterns) < len(targets)
    heads = output_heads(model) if all_linear else set()
    parents = {path: module for path, module in modules} | {"": model}
    used: set[str] = set()
    chosen: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for path, module in modules:
        if config.layers is not None and block_index(path) not in config.layers:
            continue
        kind = layer_kind_of(module)
        pattern = first_match(patterns, path)
        linear = all_linear and kind is not None and kind.layout(module).kind == "linear"
        if pattern is None and not linear:
            continue
        excluded = first_match(config.exclude, path)
        if excluded is not None:
            used.update([pattern] if pattern else [])
            skipped[path] = f"exclude {excluded!r}"
        elif any(path == outer or path.startswith(f"{outer}.") for outer in trained):
            used.update([pattern] if pattern else [])
            skipped[path] = "trained whole"
        elif pattern is None and id(module) in heads:
            skipped[path] = "output head"
        elif kind is None:
            continue  # a container that a pattern happens to name; an error only if the pattern names nothing else
        else:
            reason = _refusal(path, module, kind, parents[path.rpartition(".")[0]], config)
            if reason is None:
                chosen[path] = pattern or ALL_LINEAR
                used.update([pattern] if pattern else [])
            elif pattern is not None:
                raise TargetError(
                    f"targets: {path!r} cannot be adapted: {reason}; leave it out with exclude=({path!r},)"
                )
            else:
                skipped[path] = reason
    _check_patterns_used(modules, config, [p for p in patterns if p not in used])
    if not chosen and not trained:
        raise TargetError(
            f"targets: {config.targets!r} chose no module of this {type(model).__name__}"
            + (f" within layers {config.layers}" if config.layers is not None else "")
            + "; name modules by a pattern"
        )
    return chosen, skipped


def _check_patterns_used(modules: list[tuple[str, nn.Module]], config: LoRAConfig, unused: list[str]) -> None:
    paths = [path for path, _ in modules]
    for pattern in unused:
        hits = [(path, module) for path, module in modules if matches(pattern, path)]
        if not hits:
            raise nothing_matched("targets", pattern, paths)
        if config.layers is not None and any(layer_kind_of(module) for _, module in hits):
            found = sorted({i for path, _ in hits if (i := block_index(path)) is not None})
            raise TargetError(f"layers: {pattern!r} matches nothing in the layers {config.layers}; it is in {found}")
        path, module = hits[0]
        inner = [p for p, part in base_modules(module, path) if layer_kind_of(part)]
        names = ", ".join(dict.fromkeys(repr(p.rpartition(".")[2]) for p in inner))
        advice = (
            f"; name the layers inside it: {names}"
            if names
            else "; weft adapts linear layers, embeddings and convolutions"
        )
        raise TargetError(f"targets: {pattern!r} names {path!r}, a {type(module).__name__}{advice}")
    for pattern in config.exclude:
        if not any(matches(pattern, path) for path in paths):
            raise nothing_matched("exclude", pattern, paths)


def _refusal(path: str, module: nn.Module, kind: type[LoRALayer], parent: nn.Module, config: LoRAConfig) -> str | None:
    """Why a module of a known kind cannot be adapted, or None."""
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this layer's weight itself and never calls the layer"
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer reads this layer's weight itself on its inference fast path; "
            "call torch.backends.mha.set_fastpath_enabled(False) first"
        )
    if isinstance(module, Adapted) and not isinstance(module, LoRALayer):
        return "another adapter trains its bias or the whole module"
    if foreign_forward(module):
        return "its forward was replaced on the object, so an adapter would never be called"
    if config.dropout > 0 and kind.layout(module).kind == "embedding":
        return "dropout has nothing to drop in token ids; use dropout=0"
    return kind.refusal(module)


def _add_sharing_modules(
    model: nn.Module, by_path: dict[str, nn.Module], config: LoRAConfig, chosen: dict[str, str]
) -> dict[str, str]:
    """Adds to `chosen` the modules that share a chosen module's weight; returns path -> path it shares with.

    The weight is one, so its change must be one: both modules get the same factors.
    """
    shared_with: dict[str, str] = {}
    for paths in sharing(model).values():
        first = next((path for path in paths if path in chosen), None)
        if first is None:
            continue
        for path in paths:
            if path == first:
                continue
            kind = layer_kind_of(by_path[path])
            reason = (
                f"exclude {first_match(config.exclude, path)!r}"
                if first_match(config.exclude, path) is not None
                else "it is no layer that weft adapts" if kind is None else kind.refusal(by_path[path])
            )  # fmt: skip
            if reason is not None:
                raise TargetError(
                    f"targets: {first!r} shares its weight with {path!r}, which cannot be adapted with it ({reason}); "
                    f"untie them, or leave both out"
                )
            chosen[path] = chosen.get(path, f"shares the weight of {first}")
            shared_with[path] = first
    return shared_with


def _planned(path: str, module: nn.Module, config: LoRAConfig, reason: str, shares: str | None) -> PlannedModule:
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
    has_bias = module._parameters.get("bias") is not None
    bias = config.bias != "none" and has_bias
    return PlannedModule(path, kind.kind, shape, rank, alpha, config.scaling(alpha, rank), bias, reason, shares)


def _biases(
    modules: list[tuple[str, nn.Module]], config: LoRAConfig, chosen: set[str], trained: list[str]
) -> dict[str, int]:
    """path -> size of the biases beyond those of the adapted modules, for ``bias="all"``."""
    if config.bias != "all":
        return {}
    found: dict[str, int] = {}
    for path, module in modules:
        bias = module._parameters.get("bias")
        if bias is None or path in chosen or any(path == o or path.startswith(f"{o}.") for o in trained):
            continue
        if not BiasLayer.serves(module) or isinstance(module, LoRALayer) or foreign_forward(module):
            raise TargetError(
                f"bias='all': the bias of {path!r} ({type(module).__name__}) cannot be trained beside the base's; "
                f"use bias='adapted', or train the whole module with train_modules=({path!r},)"
            )
        found[path] = bias.numel()
    return found
