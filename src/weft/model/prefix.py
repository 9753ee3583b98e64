"""The first rows of A and columns of B alone: an adapter at a lower rank, without a copy of anything.

Rank b of an adapter whose factors are nested or sorted is its prefix: A[:b] (b, in) and B[:, :b] (out, b), with the
scaling of the whole. Forward and backward then cost what rank b costs, and the rest gets a gradient of zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from weft.model.modules import adapted_modules
from weft.model.state import require_adapter, state_of
from weft.nn import Factors

NESTED = "nested_ranks"
"""Where an adapter's provenance has the ranks whose prefixes were trained, ascending; see `weft.training.nested`."""


def factors_of(model: nn.Module, name: str = "default") -> list[Factors]:
    """The factors of an attached adapter, in the order of the model's modules.

    Raises:
        StateError: nothing is attached under this name.
    """
    require_adapter(state_of(model), name)
    parts = [module.adapters[name] for _, module in adapted_modules(model) if name in module.adapters]
    return [part for part in parts if isinstance(part, Factors)]


@contextmanager
def prefix(factors: Sequence[Factors], rank: int) -> Iterator[None]:
    """Lets only the first `rank` rows and columns take part, for the length of a ``with`` block.

    In training, the backward pass has to run inside the block too: checkpointed activations are computed again there.

    Args:
        factors: from `factors_of`. Those of a lower rank take part whole.
        rank: at least 1.
    """
    before = [each.prefix for each in factors]
    for each in factors:
        each.prefix = rank
    try:
        yield
    finally:
        for each, old in zip(factors, before, strict=True):
            each.prefix = old
