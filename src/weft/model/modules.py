"""A model's own modules and parameters, without the banks that adapters added to it."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from weft.nn import Adapted


def base_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every (path, module) of the base, each module once, in the order of `named_modules`."""
    seen: set[int] = set()
    pending = [(prefix, model)]
    while pending:
        path, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        bank = module.adapters if isinstance(module, Adapted) else None
        children = [(name, child) for name, child in module._modules.items() if child is not None and child is not bank]
        pending += [(f"{path}.{name}" if path else name, child) for name, child in reversed(children)]


def base_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of the base by name, a shared one under each of its names."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in base_modules(model)
        for name, parameter in _weights(module)
    }


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every (path, module) that carries a bank of adapters."""
    return ((path, module) for path, module in base_modules(model) if isinstance(module, Adapted))


def sharing(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter -> the paths of the modules that hold it as `weight`, for those that more than one holds."""
    holders: dict[int, list[str]] = {}
    for path, module in base_modules(model):
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append(path)
    return {key: paths for key, paths in holders.items() if len(paths) > 1}


@runtime_checkable
class _PretrainedModel(Protocol):
    """What transformers' models say of their own anatomy."""

    @property
    def base_model(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module | None: ...


def output_heads(model: nn.Module) -> set[int]:
    """ids of the modules that are heads: outside a transformers model's backbone, or its output embedding.

    Any other model has no head that could be known.
    """
    heads: set[int] = set()
    for _, module in base_modules(model):
        if not isinstance(module, _PretrainedModel):
            continue
        backbone = module.base_model
        if backbone is not module:
            inside = {id(part) for part in backbone.modules()}
            heads |= {id(part) for _, part in base_modules(module)} - inside
        try:
            head = module.get_output_embeddings()
        except NotImplementedError:  # how some transformers models say that they have none
            head = None
        if head is not None:
            heads.add(id(head))
        break  # the outermost one knows best
    return heads
