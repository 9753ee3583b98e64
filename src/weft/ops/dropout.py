"""Which entries dropout drops, as their places: the gaps between them are drawn, not a number for every entry.

In a row of independent trials with probability p, the gaps from one success to the next are independent and geometric.
So for p = 0.05 a twentieth of the random numbers gives exactly the process, and a twentieth of the places is all that
there is to keep.
"""

import math

import torch
from torch import Tensor

__all__ = ["dropped_places"]


def dropped_places(count: int, probability: float, device: torch.device) -> Tensor:
    """The places in 0 ... count - 1 that are dropped, each independently with the given probability.

    The random numbers come from torch's generator of the device, so that a seed, gradient checkpointing and a resumed
    run reproduce them.

    Args:
        count: the number of entries.
        probability: that of dropping one, 0 < probability < 1.
        device: where the result lives.

    Returns:
        (n), ascending; int32 where `count` allows it.
    """
    places: list[Tensor] = []
    last = -1  # the place dropped last
    while last < count:
        left = (count - last) * probability
        draws = int(left + 5 * math.sqrt(left)) + 8  # enough, all but once in millions; otherwise there is another turn
        # floor(E / -log(1 - p)) failures before the next success, for E exponential
        gaps = torch.empty(draws, dtype=torch.float64, device=device).exponential_().div_(-math.log1p(-probability))
        reached = (gaps.floor_().to(torch.int64) + 1).cumsum(0) + last
        places.append(reached)
        last = int(reached[-1])
    found = torch.cat(places) if len(places) > 1 else places[0]
    return found[: int(torch.searchsorted(found, count))].to(torch.int32 if count < 2**31 else torch.int64)
