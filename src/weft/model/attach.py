"""Attaching an adapter to a model in place, and taking it off again.

Everything is checked before anything is touched: an attach that fails leaves the model as it was.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.config import LoRAConfig
from weft.errors import BaseMismatchError, BindingError, ConfigError, StateError, TargetError
from weft.fingerprint import fingerprint
from weft.init import start_factors
from weft.model.merge import unmerge
from weft.model.modules import adapted_modules, base_modules, base_parameters
from weft.model.patterns import first_match
from weft.model.plan import Plan, plan
from weft.model.state import (  # fmt: skip
    Attached,
    ModelState,
    drop_state,
    ensure_state,
    has_state,
    require_adapter,
    require_unmerged,
    state_of,
)
from weft.model.switch import activate
from weft.nn import Adapted, BiasLayer, Factors, ReplacedModule, TrainedBias, layer_kind_of, unweave, weave
from weft.nn.bank import foreign_forward
from weft.nn.replaced import trained_copy
from weft.variants import rule_for

# One adapter's part on one module, ready to be put into its bank: (path, module, the kind it needs, the part).
_Part = tuple[str, nn.Module, type[Adapted], nn.Module]


def attach(
    model: nn.Module,
    source: LoRAConfig | Adapter,
    name: str = "default",
    *,
    trainable: bool | None = None,
    any_base: bool = False,
) -> nn.Module:
    """Attaches an adapter to `model`, in place, and makes it the active one.

    From a `LoRAConfig` the adapter is new and trainable; from an `Adapter` it is frozen. A trainable adapter
    freezes the base's parameters. Outputs are bit for bit what they were after attaching a new adapter, every
    parameter object and state-dict key of the base stays, and other attached adapters are not disturbed.

    Args:
        model: any module.
        source: a configuration, or an adapter.
        name: the adapter's name on this model; letters, digits, ``_`` and ``-``.
        trainable: True to go on training an `Adapter`. A configuration is always trainable.
        any_base: attach an `Adapter` even if it was made for another base.

    Returns:
        `model` itself.

    Raises:
        StateError: the name is taken or not allowed, or something is merged.
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
        BaseMismatchError: the adapter was made for another base.
        BindingError: tensors that did not fit; all are listed, and the model is untouched.
    """
    _check_name(model, name)
    parameters = base_parameters(model)
    base = fingerprint(parameters)
    if isinstance(source, LoRAConfig):
        if trainable is False:
            raise StateError("an adapter made from a LoRAConfig starts at zero; frozen, it would never do anything")
        parts = list(_new_parts(model, plan(model, source)))
        record = Attached(source, True, base, _provenance(model))
    else:
        if source.base is not None and not any_base:
            difference = source.base.difference(base)
            if difference is not None:
                made_for = source.provenance.get("base")
                raise BaseMismatchError(
                    f"this adapter was made for another base{f' ({made_for})' if made_for else ''}: here, {difference}. "
                    "Load the base that it was made for, or pass any_base=True if you know that they fit"
                )
        parts = _loaded_parts(model, source, bool(trainable))
        record = Attached(source.config, bool(trainable), source.base or base, source.provenance)
    _check_kinds(parts)

    state = ensure_state(model)
    for _, module, kind, part in parts:
        weave(module, kind).adapters[name] = part
    state.adapters[name] = record
    if record.trainable:
        _freeze(state, parameters)
    activate(model, name)
    return model


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Takes an adapter, or with no name all of them, off again; the base is bit for bit what it was.

    A merge is undone first, unless it was made final (``undo=None``): then the merged weights stay.

    Raises:
        StateError: nothing is attached, or not under this name.
    """
    state = state_of(model)
    if state.merged is not None:
        unmerge(model, missing_ok=True)
    names = list(state.adapters) if name is None else [name]
    for each in names:
        require_adapter(state, each)
    for _, module in list(adapted_modules(model)):
        for each in names:
            if each in module.adapters:
                del module.adapters[each]
        module.active = {key: scale for key, scale in module.active.items() if key not in names}
        if not module.adapters:
            unweave(module)
    for each in names:
        del state.adapters[each]
        state.active.pop(each, None)
    if not any(record.trainable for record in state.adapters.values()):
        _thaw(state, model)
    if not state.adapters:
        drop_state(model)
    return model


def _check_name(model: nn.Module, name: str) -> None:
    if not name or not all(c.isalnum() or c in "_-" for c in name):
        raise StateError(f"an adapter's name may hold letters, digits, '_' and '-' only; found {name!r}")
    if has_state(model):
        state = state_of(model)
        require_unmerged(state, "attach an adapter")
        if name in state.adapters:
            raise StateError(f"an adapter named {name!r} is attached already; choose another name, or detach it first")


def _new_parts(model: nn.Module, planned: Plan) -> Iterator[_Part]:
    """The parts of a new adapter, started by its initializer."""
    config = planned.config
    by_path = dict(base_modules(model))
    rule = rule_for(config.variant)
    made: dict[str, Factors] = {}
    for m in planned.modules:
        module = by_path[m.path]
        kind = layer_kind_of(module)
        assert kind is not None
        if m.shares is None:
            matrix = kind.matrix(module)
            try:
                start = start_factors(config.init, matrix, m.rank, m.scaling, _factor_dtype(matrix))
            except ConfigError as error:
                raise TargetError(f"targets: {m.path!r} cannot be adapted: {error}") from error
            bias = module._parameters["bias"] if m.bias else None
            made[m.path] = Factors(
                start.A,
                start.B,
                m.scaling,
                rule,
                dropout=config.dropout,
                bias=None if bias is None else _wide(bias),
                offset=start.offset,
            )
        yield m.path, module, kind, made[m.shares or m.path]
    for path in planned.trained:
        yield path, by_path[path], ReplacedModule, trained_copy(_plain(by_path[path]), trainable=True)
    for path in planned.biases:
        bias = by_path[path]._parameters["bias"]
        assert bias is not None
        yield path, by_path[path], BiasLayer, TrainedBias(_wide(bias), trainable=True)


def _plain(module: nn.Module) -> nn.Module:
    """The module as the base has it: of a module replaced for another adapter too."""
    if not isinstance(module, ReplacedModule):
        return module
    twin = trained_copy(module, trainable=False)
    assert isinstance(twin, ReplacedModule)
    unweave(twin)
    return twin


def _loaded_parts(model: nn.Module, adapter: Adapter, trainable: bool) -> list[_Part]:
    """The parts of a given adapter; every tensor is bound exactly once, or one error lists all that were not."""
    by_path = dict(base_modules(model))
    problems: list[str] = []
    parts: list[_Part] = []
    rule = rule_for(adapter.config.variant)
    left = dict(adapter.tensors)

    for path, value in adapter.factors.items():
        module = by_path.get(path)
        kind = layer_kind_of(module) if module is not None else None
        if module is None or kind is None:
            found = (
                "there is no such module" if module is None else f"{type(module).__name__} is no layer that weft adapts"
            )
            problems.append(f"{path}: B {_shape(value.B)} and A {_shape(value.A)} are given, but {found}")
            continue
        refusal = "its forward was replaced on the object" if foreign_forward(module) else kind.refusal(module)
        if value.shape != kind.shape(module) or adapter.layouts[path] != kind.layout(module) or refusal is not None:
            problems.append(
                f"{path}: found B {_shape(value.B)} and A {_shape(value.A)} for {adapter.layouts[path]}, "
                + (refusal or f"expected B ({kind.shape(module)[0]}, r) and A (r, {kind.shape(module)[1]}) for {kind.layout(module)}")
            )  # fmt: skip
            continue
        bias = left.pop(f"{path}.bias", None)
        if bias is not None and not _fits(bias, module._parameters.get("bias"), f"{path}.bias", problems):
            continue
        device = kind.matrix(module).device
        A, B = (_own(t, trainable).to(device) for t in (value.A, value.B))
        dropout = adapter.config.dropout if trainable and kind.layout(module).kind != "embedding" else 0.0
        own_bias = None if bias is None else _own(bias, trainable).to(device)
        part = Factors(A, B, value.scaling, rule, dropout=dropout, bias=own_bias, trainable=trainable)
        parts.append((path, module, kind, part))

    for path, module in by_path.items():
        if path and first_match(adapter.config.train_modules, path) and not any(path.startswith(f"{p}.") for p, _, k, _ in parts if k is ReplacedModule):  # fmt: skip
            own = {
                key: left.pop(f"{path}.{key}") for key in list(_plain(module).state_dict()) if f"{path}.{key}" in left
            }
            twin = _filled_copy(path, module, own, trainable, problems)
            if twin is not None:
                parts.append((path, module, ReplacedModule, twin))
    for key, tensor in left.items():
        path, _, last = key.rpartition(".")
        module = by_path.get(path)
        if last == "bias" and module is not None and BiasLayer.serves(module):
            if _fits(tensor, module._parameters.get("bias"), key, problems):
                parts.append((path, module, BiasLayer, TrainedBias(_own(tensor, trainable), trainable)))
        else:
            problems.append(f"{key}: a tensor {_shape(tensor)} is given, but nothing in the model takes it")
    if problems:
        total = len(adapter.factors) + len(adapter.tensors)
        raise BindingError(
            f"{len(problems)} of the adapter's {total} entries did not fit this {type(model).__name__}; nothing was "
            "attached:\n  " + "\n  ".join(problems)
        )
    return parts


def _filled_copy(
    path: str, module: nn.Module, own: dict[str, Tensor], trainable: bool, problems: list[str]
) -> nn.Module | None:
    """A copy of a whole module with the adapter's tensors in it; None, and a problem noted, if they do not fit."""
    twin = trained_copy(_plain(module), trainable)
    expected = twin.state_dict()
    for key in sorted(expected.keys() | own.keys()):
        if key not in own:
            problems.append(f"{path}.{key}: expected {_shape(expected[key])}, found nothing")
        elif own[key].shape != expected[key].shape:
            problems.append(f"{path}.{key}: found {_shape(own[key])}, expected {_shape(expected[key])}")
    if any(problem.startswith(f"{path}.") for problem in problems):
        return None
    twin.load_state_dict(own)
    return twin


def _fits(tensor: Tensor, target: Tensor | None, key: str, problems: list[str]) -> bool:
    """Whether a tensor has the shape of its target; notes a problem if not."""
    if target is not None and tensor.shape == target.shape:
        return True
    problems.append(
        f"{key}: found {_shape(tensor)}, expected {'no such parameter' if target is None else _shape(target)}"
    )
    return False


def _check_kinds(parts: list[_Part]) -> None:
    """Raises StateError if a module carries adapters of another sort already (its bias alone, or a whole copy)."""
    for path, module, kind, _ in parts:
        if isinstance(module, Adapted) and not isinstance(module, kind):
            raise StateError(
                f"{path!r} carries an adapter as {type(module).__bases__[0].__name__} already and cannot carry another as "
                f"{kind.__name__}; detach that one first"
            )


def _freeze(state: ModelState, parameters: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            state.thawed.append(name)
            parameter.requires_grad_(False)


def _thaw(state: ModelState, model: nn.Module) -> None:
    parameters = base_parameters(model)
    for name in state.thawed:
        parameters[name].requires_grad_(True)
    state.thawed.clear()


def _factor_dtype(matrix: Tensor) -> torch.dtype:
    """float32 for a half-precision or quantised base: AdamW's small steps would be rounded away in bfloat16."""
    return matrix.dtype if matrix.dtype in (torch.float32, torch.float64) else torch.float32


def _wide(bias: Tensor) -> Tensor:
    return bias.detach().to(_factor_dtype(bias), copy=True)


def _own(tensor: Tensor, trainable: bool) -> Tensor:
    """The tensor to put into a bank: a float32 copy if it is to be trained, else the adapter's own, shared."""
    return tensor.detach().to(_factor_dtype(tensor), copy=True) if trainable else tensor.detach()


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _provenance(model: nn.Module) -> dict[str, str]:
    name = getattr(model, "name_or_path", "")  # transformers' models know where they came from
    return {"base": str(name)} if name else {}
