"""The memory of tensors as operations make them and let go of them."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Follows, while the context lasts, every storage that an operation makes, until its last tensor is gone.

    Each storage counts once, however many tensors share it; those that were there before do not count. It goes by
    what operations return, so that it counts the same on the meta device, where nothing is computed, as on a real one.

    Attributes:
        now: bytes that live now.
        peak: the most that lived at one time, since the last `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor, made=False)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._follow(tensor, made=True)
        return result

    def _follow(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes() if made else 0
        self._sizes[key] = size
        weakref.finalize(storage, self._forget, key).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
