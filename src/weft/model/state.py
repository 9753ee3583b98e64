"""What is attached to a model: kept on the model object itself, so that a copy of the model has its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from weft.config import LoRAConfig
from weft.errors import StateError, nearest
from weft.fingerprint import Fingerprint, fingerprint
from weft.model.engines import require_whole, reshard
from weft.model.modules import Survey, adapted_modules

_KEY = "_weft"


@dataclass(frozen=True)
class Attached:
    """One attached adapter: what cannot be read off the layers."""

    config: LoRAConfig
    trainable: bool
    base: Fingerprint
    provenance: Mapping[str, Any]


@dataclass
class ModelState:
    """Everything attached to one model.

    Attributes:
        adapters: name -> record, in the order of attaching.
        active: name -> scale, of the adapters that change the output now.
        merged: the same for those merged into the weights; None when nothing is merged.
        thawed: names of the base's parameters that required gradients before a trainable adapter froze them.
    """

    adapters: dict[str, Attached] = field(default_factory=dict)
    active: dict[str, float] = field(default_factory=dict)
    merged: dict[str, float] | None = None
    thawed: list[str] = field(default_factory=list)


def state_of(model: nn.Module) -> ModelState:
    """The state of a model with something attached.

    Raises:
        StateError: nothing is attached to this very module.
    """
    state = model.__dict__.get(_KEY)
    if not isinstance(state, ModelState):
        raise StateError(
            f"no adapter is attached to this {type(model).__name__}; call weft.attach on it first, "
            "or pass the same module that was passed to weft.attach"
        )
    return state


def has_state(model: nn.Module) -> bool:
    """Whether something is attached to this very module."""
    return _KEY in model.__dict__


def ensure_state(model: nn.Module) -> ModelState:
    """The state of a model, made if there is none."""
    if not has_state(model):
        model.__dict__[_KEY] = ModelState()
    return state_of(model)


def drop_state(model: nn.Module) -> None:
    """Forgets everything about a model."""
    del model.__dict__[_KEY]


def require_adapter(state: ModelState, name: str) -> Attached:
    """The record of an attached adapter.

    Raises:
        StateError: none has this name.
    """
    if name not in state.adapters:
        there = ", ".join(map(repr, state.adapters))
        raise StateError(f"no adapter named {name!r} is attached{nearest(name, state.adapters)} (there are: {there})")
    return state.adapters[name]


def require_unmerged(state: ModelState, action: str) -> None:
    """Raises StateError while adapters are merged into the weights."""
    if state.merged is not None:
        names = ", ".join(map(repr, state.merged))
        raise StateError(f"cannot {action} while {names} is merged into the weights; call weft.unmerge(model) first")


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the attached adapters, in the order of attaching; empty if there are none."""
    return tuple(state_of(model).adapters) if has_state(model) else ()


def base_fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of a model's base, whatever is attached (but not merged) to it.

    Raises:
        StateError: the model is sharded.
    """
    require_whole(model.modules(), "take the fingerprint of", "take it before sharding")
    return fingerprint(Survey(model).values)


def trainable_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every trainable adapter, each once: what an optimizer is to get.

    Raises:
        StateError: nothing is attached, or no adapter is trainable: an optimizer over nothing trains nothing.
    """
    state = state_of(model)
    names = [name for name, record in state.adapters.items() if record.trainable]
    if not names:
        raise StateError(
            f"none of the attached adapters ({', '.join(state.adapters)}) is trainable; "
            "attach one from a LoRAConfig, or with trainable=True"
        )
    reshard(model)
    unique = {
        id(parameter): parameter
        for _, module in adapted_modules(model)
        for name in names
        if name in module.adapters
        for parameter in module.adapters[name].parameters()
    }
    yield from unique.values()
