"""Which modules a configuration means: patterns become paths, each with the reason why, or with why not."""

import torch
from torch import nn

from weft.companions import part_for
from weft.config import ALL_LAYERS, ALL_LINEAR, Companion, LoRAConfig
from weft.errors import TargetError
from weft.model.modules import Survey, base_modules, output_heads
from weft.nn import Adapted, BiasLayer, LoRALayer, ReplacedModule, Site, VariantRule, layer_kind_of, storage_of
from weft.nn.bank import foreign_forward
from weft.patterns import block_index, first_match, matches, nothing_matched
from weft.variants import rule_for


def trained_modules(modules: list[tuple[str, nn.Module]], config: LoRAConfig) -> list[str]:
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
            quantised = next((p for p, part in base_modules(module, path) if storage_of(part) is not None), None)
            if quantised is not None:
                raise TargetError(
                    f"train_modules: {quantised!r} is quantised, and cannot be trained whole; name it in targets, or "
                    "load the base unquantised"
                )
            if not any(True for _ in module.parameters()):
                raise TargetError(f"train_modules: {path!r} ({type(module).__name__}) has no parameters to train")
            if type(module).forward is nn.Module.forward:
                raise TargetError(
                    f"train_modules: {path!r} ({type(module).__name__}) only holds modules and is never called itself; "
                    "name those inside it"
                )
    return outermost


def choose(survey: Survey, config: LoRAConfig, trained: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """path -> the pattern that chose it, and path -> why it was skipped."""
    modules = [(path, module) for path, module in survey.modules.items() if path]
    targets = (config.targets,) if isinstance(config.targets, str) else config.targets
    patterns = [pattern for pattern in targets if pattern not in (ALL_LINEAR, ALL_LAYERS)]
    all_linear, all_layers = ALL_LINEAR in targets, ALL_LAYERS in targets
    heads = output_heads(survey.modules.values()) if all_linear and not all_layers else set()
    if config.layers is not None:
        _check_layers(config.layers, [path for path, _ in modules])
    rule = rule_for(config.variant)
    used: set[str] = set()
    chosen: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for path, module in modules:
        if config.layers is not None and block_index(path) not in config.layers:
            continue
        kind = layer_kind_of(module)
        pattern = first_match(patterns, path)
        swept = kind is not None and (all_layers or (all_linear and kind.layout(module).kind == "linear"))
        if pattern is None and not swept:
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
            reason = _refusal(module, kind, survey.modules[path.rpartition(".")[0]], config, rule)
            if reason is None:
                chosen[path] = pattern or (ALL_LAYERS if all_layers else ALL_LINEAR)
                used.update([pattern] if pattern else [])
            elif pattern is not None or isinstance(module, Adapted):
                raise TargetError(
                    f"targets: {path!r} cannot be adapted: {reason}; leave it out with exclude=({path!r},)"
                )
            else:
                skipped[path] = reason
    _leave_sharers(survey, chosen, skipped)
    _check_patterns_used(modules, config, [p for p in patterns if p not in used])
    if targets and not chosen and not trained:
        raise TargetError(
            f"targets: {config.targets!r} chose no module of this {type(survey.model).__name__}"
            + (f" within layers {config.layers}" if config.layers is not None else "")
            + "; name modules by a pattern"
        )
    return chosen, skipped


def _leave_sharers(survey: Survey, chosen: dict[str, str], skipped: dict[str, str]) -> None:
    """Skips what nobody named but "all-layers" and shares its weight with a skipped module: one weight, one change."""
    for paths in survey.sharing.values():
        left = next((path for path in paths if path in skipped), None)
        for path in paths:
            if left is not None and chosen.get(path) == ALL_LAYERS:
                del chosen[path]
                skipped[path] = f"shares the weight of {left}"


def _check_layers(layers: tuple[int, ...], paths: list[str]) -> None:
    blocks = {index for path in paths if (index := block_index(path)) is not None}
    for index in layers:
        if index not in blocks:
            there = f"the blocks are {min(blocks)} to {max(blocks)}" if blocks else "no module's path holds a number"
            raise TargetError(f"layers: there is no block {index} in this model; {there}")


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


def _refusal(
    module: nn.Module, kind: type[LoRALayer], parent: nn.Module, config: LoRAConfig, rule: VariantRule
) -> str | None:
    """Why a module of a known kind cannot be adapted, or None."""
    uncalled = _uncalled(parent)
    if uncalled is not None:
        return uncalled
    if isinstance(module, Adapted) and not isinstance(module, LoRALayer):
        return "another adapter trains its bias or the whole module"
    if foreign_forward(module):
        return "its forward was replaced on the object, so an adapter would never be called"
    if config.dropout > 0 and kind.layout(module).kind == "embedding":
        return "dropout has nothing to drop in token ids; use dropout=0"
    return kind.refusal(module) or rule.refusal(kind, module)


def _uncalled(parent: nn.Module) -> str | None:
    """Why a layer is never called by the module that holds it, or None."""
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this layer's weight itself and never calls the layer"
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer reads this layer's weight itself on its inference fast path; "
            "call torch.backends.mha.set_fastpath_enabled(False) first"
        )
    return None


def companion_sites(survey: Survey, config: LoRAConfig, companion: Companion, trained: list[str]) -> dict[str, Site]:
    """path -> site, of the layers that a companion is to stand beside."""
    sites = part_for(companion).sites(companion, survey.modules)
    chosen = {
        path: site
        for path, site in sites.items()
        if first_match(config.exclude, path) is None
        and (config.layers is None or block_index(path) is None or block_index(path) in config.layers)
        and not any(path == outer or path.startswith(f"{outer}.") for outer in trained)
    }
    for path in chosen:
        reason = _uncalled(survey.modules[path.rpartition(".")[0]])
        if reason is not None:
            raise TargetError(f"{companion.name}: {path!r} can have none: {reason}; leave it out with exclude")
    if not chosen:
        raise TargetError(
            f"{companion.name}: layers, exclude and train_modules leave none of the {len(sites)} layers that could "
            f"have one, such as {next(iter(sites))!r}"
        )
    return chosen


def add_sharing_modules(survey: Survey, config: LoRAConfig, chosen: dict[str, str]) -> dict[str, str]:
    """Adds to `chosen` the modules that share a chosen module's weight; returns path -> path it shares with.

    The weight is one, so its change must be one: both modules get the same factors.
    """
    shared_with: dict[str, str] = {}
    rule = rule_for(config.variant)
    for paths in survey.sharing.values():
        first = next((path for path in paths if path in chosen), None)
        if first is None:
            continue
        first_kind = layer_kind_of(survey.modules[first])
        assert first_kind is not None
        for path in paths:
            if path == first:
                continue
            kind = layer_kind_of(survey.modules[path])
            reason = (
                f"exclude {first_match(config.exclude, path)!r}"
                if first_match(config.exclude, path) is not None
                else "it is no layer that weft adapts" if kind is None
                else kind.refusal(survey.modules[path]) or rule.refusal(kind, survey.modules[path])
                or rule.sharing_refusal(first_kind, kind)
            )  # fmt: skip
            if reason is not None:
                raise TargetError(
                    f"targets: {first!r} shares its weight with {path!r}, which cannot be adapted with it ({reason}); "
                    f"untie them, or leave both out"
                )
            chosen[path] = chosen.get(path, f"shares the weight of {first}")
            shared_with[path] = first
    return shared_with


def further_biases(
    modules: list[tuple[str, nn.Module]], config: LoRAConfig, chosen: set[str], trained: list[str]
) -> dict[str, int]:
    """path -> size of the biases beyond those of the adapted modules, for ``bias="all"``."""
    if config.bias != "all":
        return {}
    found: dict[str, int] = {}
    unserved: dict[str, nn.Module] = {}
    trained_biases: set[int] = set()
    for path, module in modules:
        bias = module._parameters.get("bias")
        if bias is None:
            continue
        if path in chosen or any(path == o or path.startswith(f"{o}.") for o in trained):
            trained_biases.add(id(bias))
        elif not BiasLayer.serves(module) or isinstance(module, LoRALayer) or foreign_forward(module):
            unserved[path] = module
        else:
            found[path] = bias.numel()
            trained_biases.add(id(bias))
    for path, module in unserved.items():
        if id(module.bias) not in trained_biases:  # some models keep a bias under two names: BERT's head, for one
            raise TargetError(
                f"bias='all': the bias of {path!r} ({type(module).__name__}) cannot be trained beside the base's; "
                f"use bias='adapted', or train the whole module with train_modules=({path!r},)"
            )
    return found
