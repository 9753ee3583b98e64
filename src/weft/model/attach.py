"""Attaching an adapter to a model in place, and taking it off again.

Everything is checked before anything is touched: an attach that fails leaves the model as it was.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from weft.adapter import Adapter
from weft.config import LoRAConfig
from weft.errors import BaseMismatchError, StateError
from weft.fingerprint import Fingerprint, fingerprint
from weft.model.engines import require_bare, require_whole
from weft.model.merge import unmerge
from weft.model.modules import Survey
from weft.model.parts import loaded_parts, new_parts
from weft.model.plan import plan_of
from weft.model.prefix import NESTED
from weft.model.state import (
    Attached,
    ModelState,
    adapter_names,
    drop_state,
    ensure_state,
    has_state,
    require_adapter,
    require_unmerged,
    state_of,
)
from weft.model.switch import make_active
from weft.nn import CompanionLayer, storage_of, unweave
from weft.nn.bank import check_class, put, set_active

QUANTIZE = "quantize"  # what an adapter's provenance calls the form of the base's weights that it was trained on


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: an attach makes dozens of objects a module, and all of them stay.

    With ten thousand modules, searching among them and all else in memory takes longer than making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
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

    On the meta device a new adapter takes no memory. It starts once the model gets some, by `to_empty` or another
    move; an adapter that has its values keeps them then. What needs the base's values (biases, magnitudes, whole
    modules) is refused there: attach it after they are loaded.

    Args:
        model: any module.
        source: a configuration, or an adapter.
        name: the adapter's name on this model; letters, digits, ``_`` and ``-``.
        trainable: True to go on training an `Adapter`. A configuration is always trainable.
        any_base: attach an `Adapter` even if it was made for another base.

    Returns:
        `model` itself.

    Raises:
        StateError: the name is taken or not allowed, something is merged, or an engine (DDP, FSDP2, torch.compile)
            holds the model already.
        TargetError: a pattern that matches nothing, or a module that cannot be adapted.
        BaseMismatchError: the adapter was made for another base.
        BindingError: tensors that did not fit; all are listed, and the model is untouched.
    """
    survey = Survey(model)
    require_bare(survey.modules.values(), survey.parameters.values())
    _check_name(survey, name)
    base = fingerprint(survey.values)
    if isinstance(source, LoRAConfig):
        if trainable is False:
            raise StateError("an adapter made from a LoRAConfig starts at zero; frozen, it would never do anything")
        planned = plan_of(survey, source)
        parts = new_parts(survey, planned)
        # What is trained whole takes the place of what the base has there, such as a head that chance filled in.
        record = Attached(source, True, base.without(planned.trained), _provenance(survey))
    else:
        if not any_base:
            _check_base(source, base)
        parts = loaded_parts(survey, source, bool(trainable))
        origin = {key: value for key, value in source.provenance.items() if not (trainable and key == NESTED)}
        record = Attached(source.config, bool(trainable), source.base or base, origin)

    state = ensure_state(model)
    for part in parts:
        put(part.module, part.kind, name, part.content, part.start)
        if part.site is not None and isinstance(part.module, CompanionLayer):
            part.module.insert(part.site, part.path.rpartition(".")[2])
            survey.modules[part.path] = part.module
    state.adapters[name] = record
    if record.trainable:
        _freeze(state, survey.parameters)
    make_active(state, survey.adapted(), {name: 1.0})
    return model


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Takes an adapter, or with no name all of them, off again; the base is bit for bit what it was.

    A merge is undone first, unless it was made final (``undo=None``): then the merged weights stay.

    Raises:
        StateError: nothing is attached, or not under this name; the model was sharded, or something else changed a
            layer's class, since.
    """
    state = state_of(model)
    names = list(state.adapters) if name is None else [name]
    for each in names:
        require_adapter(state, each)
    survey = Survey(model)
    require_whole(
        survey.modules.values(),
        "detach from",
        "weft.activate(model, None) gives the base's outputs; load the base again to be rid of the adapter",
    )
    modules = survey.adapted()
    for path, module in modules:
        check_class(module, path)
    if state.merged is not None:
        unmerge(model, missing_ok=True)
    for path, module in modules:
        for each in names:
            if each in module.adapters:
                del module.adapters[each]
        if module.adapters:
            set_active(module, {key: scale for key, scale in module.active.items() if key not in names})
        elif isinstance(module, CompanionLayer):
            layer, _, name_there = path.rpartition(".")
            module.take_out(survey.modules[layer], name_there)
        else:
            unweave(module)
    for each in names:
        del state.adapters[each]
        state.active.pop(each, None)
    if state.merged is not None:  # a final merge: what was merged is the base's own now
        state.merged = {key: scale for key, scale in state.merged.items() if key not in names} or None
    if not any(record.trainable for record in state.adapters.values()):
        _thaw(state, survey.parameters)
    if not state.adapters:
        drop_state(model)
    return model


def _check_name(survey: Survey, name: str) -> None:
    model = survey.model
    if not name or not all(c.isalnum() or c in "_-" for c in name):
        raise StateError(f"an adapter's name may hold letters, digits, '_' and '-' only; found {name!r}")
    if hasattr(nn.ModuleDict, name):
        raise StateError(f"an adapter cannot be named {name!r}, which torch's modules use themselves; choose another")
    if has_state(model):
        state = state_of(model)
        require_unmerged(state, "attach an adapter")
        if name in state.adapters:
            raise StateError(f"an adapter named {name!r} is attached already; choose another name, or detach it first")
    known = dict.fromkeys(adapter_names(model)).keys()
    for path, module in survey.adapted():
        if not module.adapters.keys() <= known:
            raise StateError(
                f"{path or 'this module'!r} carries an adapter that was attached through another module, one that "
                "holds this one or that this one holds; attach to that module, or detach from it first"
            )


def _check_base(adapter: Adapter, base: Fingerprint) -> None:
    difference = None if adapter.base is None else adapter.base.difference(base)
    if difference is not None:
        name = adapter.provenance.get("base")
        raise BaseMismatchError(
            f"this adapter was made for another base{f' ({name})' if name else ''}: here, {difference}. "
            "Load the base that it was made for, or pass any_base=True if you know that they fit"
        )


def _freeze(state: ModelState, parameters: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            state.thawed.append(name)
            parameter.requires_grad_(False)


def _thaw(state: ModelState, parameters: dict[str, Tensor]) -> None:
    for name in state.thawed:
        parameters[name].requires_grad_(True)
    state.thawed.clear()


def _provenance(survey: Survey) -> dict[str, str]:
    name = getattr(survey.model, "name_or_path", "")  # transformers' models know where they came from
    found = {storage.name for module in survey.modules.values() if (storage := storage_of(module)) is not None}
    return ({"base": str(name)} if name else {}) | ({QUANTIZE: ",".join(sorted(found))} if found else {})
