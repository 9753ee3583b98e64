"""Refusing an adapter that holds NaN or infinity, by the name of the module that does."""

from math import isfinite

from weft.adapter import Adapter
from weft.errors import ConfigError


def require_finite(adapter: Adapter, name: str) -> None:
    """Raises ConfigError if a factor or trained tensor of the adapter called `name` holds NaN or infinity."""
    parts = [(path, part) for path, factors in adapter.factors.items() for part in (factors.B, factors.A)]
    for path, part in [*parts, *adapter.tensors.items(), *adapter.magnitudes.items()]:
        # A sum is quick and not finite where an entry is not; only such a one needs the look at each entry.
        if not isfinite(float(part.sum())) and not part.isfinite().all():
            raise ConfigError(
                f"{name}: {path} holds NaN or infinity; its training diverged, use an earlier checkpoint of it"
            )
