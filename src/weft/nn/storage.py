"""How a layer keeps its weight: the third axis, beside its kind and the variant.

Most layers hold W itself, and need nothing here. For one that holds W in another form, such as a quantised one, a
`Storage` computes W's values from what is there. That form stays as it is, and the layer's own forward goes on reading
it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from weft.ops import is_transformed
from weft.registry import Registry


class Storage(ABC):
    """The weight W (out, in) of one layer y = x W^T + b that does not hold it as a matrix of numbers.

    A form of storage is a subclass, registered with `register_storage`.

    Attributes:
        name: what it is called.

    Args:
        module: the layer.
    """

    name: ClassVar[str]

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    @abstractmethod
    def serves(cls, module: nn.Module) -> bool:
        """Whether this storage is for modules of that type."""

    @abstractmethod
    def refusal(self) -> str | None:
        """Why W cannot be computed now; None if it can."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Of the parameter that was stored so: (out, in), or (in, out) if it was a transposed one."""

    @abstractmethod
    def dense(self) -> Tensor:
        """W (out, in), a new tensor in float32 on the layer's device."""

    @abstractmethod
    def sample(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """A few entries of that parameter, without the others.

        Args:
            places: flat positions in `shape` (n).

        Returns:
            The entries (n), and how far each can be from the number that it was rounded from (n); float32 on the CPU.
        """


S = TypeVar("S", bound=type[Storage])

storages: Registry[type[Storage]] = Registry("storage")
_storage_by_type: dict[type[nn.Module], type[Storage] | None] = {}  # what `storage_of` found out


def register_storage(storage: S) -> S:
    """A class decorator that adds a storage under its name."""
    storages.register(storage.name)(storage)
    _storage_by_type.clear()
    return storage


def storage_of(module: nn.Module) -> Storage | None:
    """How a module keeps its weight; None if it holds the weight itself, or has none."""
    own = type(module)
    if own not in _storage_by_type:
        found = [storages[name] for name in reversed(list(storages))]
        _storage_by_type[own] = next((storage for storage in found if storage.serves(module)), None)
    storage = _storage_by_type[own]
    return None if storage is None else storage(module)


def frozen_product(x: Tensor, forward: Callable[[Tensor], Tensor], storage: Storage) -> Tensor:
    """``forward(x)``, a layer without its adapters, where nothing but x may get a gradient.

    That gradient is g W, for which W is computed again, and x is not needed. A quantised layer's own operation keeps x
    all the same, where gradient checkpointing does not see it and so cannot free it.

    Args:
        x: (..., in).
        forward: the layer's own.
        storage: its weight.

    Returns:
        (..., out).
    """
    if is_transformed() or not (x.requires_grad and torch.is_grad_enabled()):
        return forward(x)
    result: Tensor = _FrozenProduct.apply(x, forward, storage)  # type: ignore[no-untyped-call]
    return result


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor], storage: Storage) -> Tensor:
        ctx.storage, ctx.dtype = storage, x.dtype
        return forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient @ ctx.storage.dense().to(gradient.dtype)).to(ctx.dtype), None, None
