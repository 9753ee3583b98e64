"""Finding NaN and infinity in an adapter, and refusing it by the name of the module that holds them."""

from math import isfinite

from torch import Tensor

from weft.adapter import Adapter
from weft.errors import ConfigError


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # A sum is quick and not finite where an entry is not; only such a one needs the look at each entry.
    return isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def not_finite(adapter: Adapter) -> list[str]:
    """The paths of the factors and of all else that was trained that hold NaN or infinity, each once."""
    parts = [(path, part) for path, factors in adapter.factors.items() for part in (factors.B, factors.A)]
    parts += [*adapter.tensors.items(), *adapter.magnitudes.items(), *adapter.companions.items()]
    return list(dict.fromkeys(path for path, part in parts if not is_finite(part)))


def require_finite(adapter: Adapter, name: str) -> None:
    """Raises ConfigError if a factor or trained tensor of the adapter called `name` holds NaN or infinity."""
    wrong = not_finite(adapter)
    if wrong:
        raise ConfigError(
            f"{name}: {wrong[0]} holds NaN or infinity; its training diverged, use an earlier checkpoint of it"
        )
