"""Merging adapters into the weights, so that they cost nothing, and taking them out again bit for bit.

The delta is computed and added in float32 (float64 for a float64 base) and rounded once, to the weight's
dtype. The merged forward is then the base's own, on W' = round(W + s B A): against the unmerged one it
differs by that one rounding of the weight and by the order of the sums.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weft.errors import MergeError, StateError
from weft.model.engines import require_whole
from weft.model.modules import adapted_modules, base_modules, base_parameters, sharing
from weft.model.state import require_unmerged, state_of
from weft.model.switch import Selection, activate, check_sum, selection
from weft.model.undo import Patch, Snapshot, Undo
from weft.nn import Adapted, BiasLayer, CompanionLayer, Factors, LoRALayer, ReplacedModule, TrainedBias, storage_of
from weft.nn.bank import set_active

UndoKind = Literal["snapshot", "patch"] | None


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        adapters: the names merged.
        tensors: how many weights, biases and others were changed.
        weight_bytes: their size.
        undo_bytes: what is kept to undo it.
    """

    adapters: tuple[str, ...]
    tensors: int
    weight_bytes: int
    undo_bytes: int

    def __str__(self) -> str:
        share = self.undo_bytes / self.weight_bytes if self.weight_bytes else 0.0
        return (
            f"merged {', '.join(self.adapters)} into {self.tensors} tensors ({self.weight_bytes / 1e6:.1f} MB); "
            f"undo log {self.undo_bytes / 1e6:.2f} MB ({share:.1%})"
        )


@torch.no_grad()
def merge(model: nn.Module, names: Selection = None, *, undo: UndoKind = "snapshot") -> MergeReport:
    """Merges adapters into the base's weights, in place; the layers then run as the base's own.

    Args:
        model: a model with adapters attached.
        names: which, as in `weft.activate`; None takes the active ones.
        undo: what `weft.unmerge` will need: "snapshot" keeps the old weights on the host; "patch" keeps only the
            entries that subtracting would not restore, guarded by a checksum; None keeps nothing: final.

    Raises:
        StateError: nothing is active, an unknown name, something is merged already, or the model is sharded.
        MergeError: a weight that cannot be merged into; all are named, and no weight is changed.
    """
    state = state_of(model)
    require_unmerged(state, "merge")
    chosen = dict(state.active) if names is None else selection(state, names)
    if not chosen:
        raise StateError(f"no adapter is active; name those to merge (there are: {', '.join(state.adapters)})")
    require_whole(
        model.modules(),
        "merge into",
        "take the adapter with weft.collect on every process, and merge it into a base that is not",
    )
    modules = adapted_modules(model)
    check_sum(modules, chosen)
    touched = [(path, m) for path, m in modules if any(name in m.adapters for name in chosen)]
    repeated = _check_mergeable(model, touched, chosen)

    undos: dict[str, list[Undo]] = {}
    changed: list[Tensor] = []
    try:
        for path, module in touched:
            undos[path] = []
            for change in _changes(module, chosen, same_weight=path in repeated):
                _apply(path, change, undo, undos[path])
                changed.append(change.target)
    except BaseException:
        for done in undos.values():
            for each in reversed(done):
                each.restore()
        raise
    for path, module in touched:
        module.merged = undos[path] if undo is not None else None
    for _, module in modules:
        set_active(module, {})
    state.merged, state.active = chosen, {}
    kept = sum(each.nbytes for done in undos.values() for each in done) if undo is not None else 0
    return MergeReport(tuple(chosen), len(changed), sum(t.nbytes for t in changed), kept)


@torch.no_grad()
def unmerge(model: nn.Module, *, missing_ok: bool = False) -> None:
    """Puts the weights back, bit for bit; the adapters that were merged are active again.

    Args:
        model: a model with a merge to undo.
        missing_ok: accept that the merge was final, and leave it.

    Raises:
        StateError: nothing is merged.
        MergeError: the merge was final, or a weight was replaced since, or a patch does not fit it any more: that one
            is left as it is.
    """
    state = state_of(model)
    if state.merged is None:
        raise StateError("nothing is merged; call weft.merge(model, name) first")
    merged = [(path, module) for path, module in adapted_modules(model) if module.merged is not None]
    if not merged:
        if missing_ok:
            return
        raise MergeError("this merge was made final (undo=None), so nothing was kept to undo it; load the base again")
    failed: dict[str, MergeError] = {}
    for path, module in merged:
        assert isinstance(module.merged, list)
        try:
            _check_still_there(module, module.merged)
            for each in reversed(module.merged):
                each.restore()
        except MergeError as error:
            failed[path] = error
        else:
            module.merged = None
    if failed:
        raise MergeError(f"{', '.join(failed)}: {next(iter(failed.values()))}")
    chosen, state.merged = state.merged, None
    activate(model, chosen)


def _check_still_there(module: Adapted, log: list[Undo]) -> None:
    held = {id(t) for _, part in base_modules(module) for t in (*part._parameters.values(), *part._buffers.values())}
    if any(id(each.target) not in held for each in log):
        raise MergeError(
            "a weight was replaced by another tensor since the merge (offloaded, or loaded anew); load the base again"
        )


@contextmanager
def merged(
    model: nn.Module, names: Selection = None, *, undo: Literal["snapshot", "patch"] = "snapshot"
) -> Iterator[MergeReport]:
    """`merge` for the length of a ``with`` block; what was active before is active again after it."""
    before = dict(state_of(model).active)
    report = merge(model, names, undo=undo)
    try:
        yield report
    finally:
        unmerge(model)
        activate(model, before)


@dataclass(frozen=True, eq=False)
class _Change:
    """How one tensor of the base changes.

    Attributes:
        target: the tensor.
        write: changes it, in place.
        delta: computes the part that `write` adds, where it adds one; a patch subtracts it again.
    """

    target: Tensor
    write: Callable[[], object]
    delta: Callable[[], Tensor] | None = None


def _changes(module: Adapted, chosen: dict[str, float], same_weight: bool) -> Iterator[_Change]:
    """The changes that the chosen adapters make to one module's tensors.

    Args:
        module: the adapted module.
        chosen: name -> scale.
        same_weight: its weight is another module's too, and changed there.
    """
    parts = {name: (module.adapters[name], scale) for name, scale in chosen.items() if name in module.adapters}
    if isinstance(module, ReplacedModule):
        (twin, _), *_ = parts.values()
        for key, value in [*twin.named_parameters(), *twin.named_buffers()]:
            target = module.get_parameter(key) if isinstance(value, nn.Parameter) else module.get_buffer(key)
            yield _Change(target, partial(target.copy_, value))
        return
    if isinstance(module, LoRALayer) and not same_weight:
        yield _weight_change(module, parts)
    biases = [
        (p.bias, scale) for p, scale in parts.values() if isinstance(p, Factors | TrainedBias) and p.bias is not None
    ]
    if biases:
        assert isinstance(module, LoRALayer | BiasLayer)
        yield _Change(module.bias, lambda: module.bias.copy_(_summed_bias(module.bias, biases)))


def _weight_change(layer: LoRALayer, parts: dict[str, tuple[nn.Module, float]]) -> _Change:
    weight, wide = layer.weight, _wide(layer.weight.dtype)

    def write() -> None:
        # A weight that is wide itself is changed where it stands; a narrow one through a wide copy, rounded once.
        new = _with_factors(layer, layer.matrix(layer).detach().to(wide), parts)
        if new.data_ptr() != weight.data_ptr():
            weight.copy_(new)

    # What undoes it is no closure: it is copied with the model.
    return _Change(weight, write, partial(_added, layer, parts) if _all_additive(parts) else None)


def _added(layer: LoRALayer, parts: dict[str, tuple[nn.Module, float]]) -> Tensor:
    return _with_factors(layer, torch.zeros_like(layer.matrix(layer), dtype=_wide(layer.weight.dtype)), parts)


def _summed_bias(bias: Tensor, trained: list[tuple[nn.Parameter, float]]) -> Tensor:
    if len(trained) == 1 and trained[0][1] == 1:
        return trained[0][0].detach()  # exactly what was trained, not b + (b' - b)
    old = bias.to(_wide(bias.dtype))
    return old + sum(scale * (new - old) for new, scale in trained)


def _all_additive(parts: dict[str, tuple[nn.Module, float]]) -> bool:
    return all(isinstance(part, Factors) and part.rule.additive for part, _ in parts.values())


def _with_factors(layer: LoRALayer, matrix: Tensor, parts: dict[str, tuple[nn.Module, float]]) -> Tensor:
    base = matrix if len(parts) == 1 or _all_additive(parts) else matrix.clone()
    for factors, scale in parts.values():
        assert isinstance(factors, Factors)
        matrix = factors.rule.weight(layer, matrix, base, factors, scale)
    return layer.as_weight(layer, matrix)


def _apply(path: str, change: _Change, undo: UndoKind, log: list[Undo]) -> None:
    """Changes one tensor, with what undoes it put into `log` first."""
    target = change.target
    snapshot = Snapshot.of(target)
    log.append(snapshot)
    change.write()
    # A sum is finite only if every entry is, and takes one pass with nothing stored.
    suspicious = target.is_floating_point() and not torch.isfinite(target.sum(dtype=_wide(target.dtype)))
    if suspicious and torch.isfinite(snapshot.saved).all() and not torch.isfinite(target).all():
        raise MergeError(
            f"{path}: the merged weight does not fit {target.dtype} (infinite or not a number); no weight was "
            "changed. Load the base in a wider dtype, or look at the adapter with `weft inspect`"
        )
    if undo == "patch" and change.delta is not None:
        patch = Patch.of(target, snapshot.saved.to(target.device), change.delta)
        log[-1] = patch if patch.nbytes < snapshot.nbytes else snapshot


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _check_mergeable(model: nn.Module, touched: list[tuple[str, Adapted]], chosen: dict[str, float]) -> set[str]:
    """The paths of modules whose weight is changed under another path already.

    Raises:
        MergeError: weights that cannot be merged into, all at once.
    """
    problems = [f"{path}: {reason}" for path, module in touched if (reason := _unmergeable(module)) is not None]
    layers = {path: module for path, module in touched if isinstance(module, LoRALayer)}
    wholes = [path for path, module in touched if isinstance(module, ReplacedModule)]
    repeated: set[str] = set()
    for holders in sharing(base_modules(model)).values():
        within = [next((whole for whole in wholes if f"{path}.".startswith(f"{whole}.")), None) for path in holders]
        if within[0] is not None and len(set(within)) == 1:
            continue  # shared inside one module, whose copy shares it too
        first = next((path for path, whole in zip(holders, within, strict=True) if whole or path in layers), None)
        if first is None:
            continue
        for path in holders:
            alike = first in layers and path in layers and _same_factors(layers[first], layers[path], chosen)
            if path != first and not alike:
                problems.append(
                    f"{first}: its weight is also that of {path!r}, which the adapter does not change alike"
                )
            repeated.add(path)
        repeated.discard(first)
    if problems:
        raise MergeError("cannot merge; no weight was changed:\n  " + "\n  ".join(problems))
    return repeated


def _unmergeable(module: Adapted) -> str | None:
    if isinstance(module, CompanionLayer):
        return "a companion changes outputs by what they are, and no weight can; leave it attached, unmerged"
    if isinstance(module, LoRALayer):
        storage = storage_of(module)
        if storage is not None:
            return (
                f"its weight is stored in {storage.name}, and rounding the merged one to that again would lose much of "
                "what the adapter learned; merge into the unquantised checkpoint (weft merge BASE ADAPTER --output "
                "FOLDER), or load the base unquantised"
            )
        if parametrize.is_parametrized(module, "weight") or "weight" not in module._parameters:
            return "its weight is computed from others (a parametrization); remove that first"
        if not module.weight.is_floating_point():
            return f"its weight is stored as {module.weight.dtype}; load the base unquantised to merge"
    if any(parameter.is_meta for parameter in base_parameters(module).values()):
        return "its weights are not in memory (on the meta device, or offloaded)"
    return None


def _same_factors(a: LoRALayer, b: LoRALayer, chosen: dict[str, float]) -> bool:
    for name in chosen:
        mine, theirs = (dict(layer.adapters.items()).get(name) for layer in (a, b))
        if mine is theirs:  # neither has any
            continue
        if not isinstance(mine, Factors) or not isinstance(theirs, Factors) or not mine.equals(theirs):
            return False
    return True
