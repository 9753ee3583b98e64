"""A model's own modules and parameters, without the banks that adapters added to it."""

from collections.abc import Iterable
from functools import cached_property
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from weft.nn import Adapted, Storage, storage_of
from weft.nn.bank import bank_of


def base_modules(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Every (path, module) of the base, each module once, in the order of `named_modules`."""
    seen: set[int] = set()
    found: list[tuple[str, nn.Module]] = []
    pending = [(prefix, model)]
    while pending:
        place = pending.pop()
        path, module = place
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(place)
        if module._modules:
            bank = bank_of(module)
            start = f"{path}." if path else ""
            pending += [
                (start + name, child)
                for name, child in reversed(module._modules.items())
                if child is not None and child is not bank
            ]
    return found


class Survey:
    """What one walk over a model finds; each step of an operation on the model looks here and walks no more.

    It holds for as long as no module is added, taken away, or given another parameter.

    Attributes:
        model: the model.
        modules: path -> module of the base, each once, in the order of `named_modules`; the model itself is "".
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(base_modules(model))

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Every parameter of the base by name, a shared one under each of its names."""
        return {
            f"{path}.{name}" if path else name: parameter
            for path, module in self.modules.items()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

    @cached_property
    def values(self) -> dict[str, Tensor | Storage]:
        """`parameters`, with what computes its values in the place of a quantised weight."""
        found: dict[str, Tensor | Storage] = dict(self.parameters)
        for path, module in self.modules.items():
            storage = storage_of(module)
            if storage is not None and storage.refusal() is None:
                found[f"{path}.weight" if path else "weight"] = storage
        return found

    @cached_property
    def sharing(self) -> dict[int, list[str]]:
        """As the function `sharing`."""
        return sharing(self.modules.items())

    def adapted(self) -> list[tuple[str, Adapted]]:
        """Every (path, module) that carries a bank of adapters by now."""
        return [(path, module) for path, module in self.modules.items() if isinstance(module, Adapted)]


def base_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of the base by name, a shared one under each of its names."""
    return Survey(model).parameters


def adapted_modules(model: nn.Module) -> list[tuple[str, Adapted]]:
    """Every (path, module) that carries a bank of adapters."""
    return [(path, module) for path, module in base_modules(model) if isinstance(module, Adapted)]


def sharing(modules: Iterable[tuple[str, nn.Module]]) -> dict[int, list[str]]:
    """id of a parameter -> the paths of the modules that hold it as `weight`, for those that more than one holds."""
    holders: dict[int, list[str]] = {}
    for path, module in modules:
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


def output_heads(modules: Iterable[nn.Module]) -> set[int]:
    """ids of the modules that are heads: outside a transformers model's backbone, or its output embedding.

    Any other model has no head that could be known.

    Args:
        modules: the model's own, in the order of `named_modules`.
    """
    heads: set[int] = set()
    others: set[type[nn.Module]] = set()  # asking a protocol costs a hundred times what asking a set does
    for module in modules:
        if type(module) in others:
            continue
        if not isinstance(module, _PretrainedModel):
            others.add(type(module))
            continue
        backbone = module.base_model
        if backbone is not module:
            inside = {id(part) for _, part in base_modules(backbone)}
            heads |= {id(part) for _, part in base_modules(module)} - inside
        try:
            head = module.get_output_embeddings()
        except NotImplementedError:  # how some transformers models say that they have none
            head = None
        if head is not None:
            heads.add(id(head))
        break  # the outermost one knows best
    return heads
