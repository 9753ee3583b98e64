"""Models that one of torch's engines holds (DDP, FSDP2, torch.compile), and what may still be done to them.

An engine looks at a model's parameters once, when it takes the model. What is attached later it does not know: nothing
averages its gradients, nothing shards it.
"""

import sys
from collections.abc import Iterable

from torch import Tensor, nn

from weft.errors import StateError

# Wrappers that hold the model as a child, so that every path and parameter name would get a prefix.
_WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch._dynamo.eval_frame", "OptimizedModule"),
)


def require_bare(modules: Iterable[nn.Module], parameters: Iterable[Tensor]) -> None:
    """Raises StateError if an engine holds the model to attach to.

    Args:
        modules: the model's own, itself first.
        parameters: theirs.
    """
    model, *_ = modules = list(modules)
    for wrapper in _WRAPPERS:
        if _is(model, *wrapper):
            raise StateError(
                f"this is the {wrapper[1]} around a model, which would not know the adapter's parameters, and its "
                "names are not the model's; attach to the model itself, before it is wrapped"
            )
    sharded = any(is_sharded(parameter) for parameter in parameters)
    if sharded or any(_is(module, "torch.distributed.fsdp", "FSDPModule") for module in modules):
        raise StateError(
            "the model is sharded over processes, and an adapter attached now would not be: each process would train "
            "its own. Attach first, then shard (fully_shard of each block and of the model)"
        )


def require_whole(modules: Iterable[nn.Module], action: str, instead: str) -> None:
    """Raises StateError if some of a model's modules are sharded over processes.

    FSDP2 puts shards and whole parameters by turns in their places: what is written to the whole ones is lost.
    """
    if any(_is(module, "torch.distributed.fsdp", "FSDPModule") for module in modules):
        raise StateError(f"cannot {action} a model that is sharded over processes; {instead}")


def reshard(model: nn.Module) -> None:
    """Puts the shards in their places that a forward pass alone may have left to whole parameters.

    The shards are what an optimizer changes, and what can be made whole again.
    """
    for module in model.modules():
        if _is(module, "torch.distributed.fsdp", "FSDPModule"):
            module.reshard()  # type: ignore[operator]  # an FSDPModule has it


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a larger one, of which it states the shape."""
    return _is(tensor, "torch.distributed.tensor", "DTensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of it if it is sharded; then every process has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor has it


def _is(thing: object, module: str, name: str) -> bool:
    """Whether a thing is an instance of a class that is nobody's while its module, slow to import, is not imported."""
    found = sys.modules.get(module)
    return found is not None and isinstance(thing, getattr(found, name))
