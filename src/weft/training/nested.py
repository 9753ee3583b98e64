"""Nested factors: each of their prefixes is trained, so that the rank can be chosen after the training.

In an optimizer step only the first b rows of A and columns of B take part, the same b in every module. Rank b of the
finished adapter is then its prefix, which is what was trained: its scaling stays that of the whole. As DyLoRA (Valipour
et al., 2022, arXiv 2210.07558), which draws b from all ranks. Here b runs through powers of two, as the sizes of a
Matryoshka representation do (Kusupati et al., 2022, arXiv 2205.13147): of every so many steps as there are sizes, each
has one, in an order that the seed decides.
"""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from weft.errors import ConfigError
from weft.model.prefix import factors_of, prefix
from weft.model.state import state_of
from weft.nn import Factors

NESTED = "nested_ranks"
"""Where an adapter's provenance has the ranks that were trained, ascending."""


class Nesting:
    """Which rank takes part in which optimizer step of a model's trainable adapters.

    It depends on the seed and the number of the step alone, so that a resumed run, and each of several processes,
    finds the same. The adapters' provenance says from now on that they are nested.

    Args:
        model: with adapters attached.
        seed: the run's seed.

    Raises:
        StateError: nothing is attached.
        ConfigError: an initializer whose start is subtracted again: what is saved would be no prefix.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed = seed
        self.factors: list[Factors] = []
        adapters = state_of(model).adapters
        for name, record in adapters.items():
            own = factors_of(model, name) if record.trainable else []
            if any(each.offset() is not None for each in own):
                raise ConfigError(
                    f"nested: the initializer {record.config.init.name!r} starts from a part of the weight, which is "
                    "taken off again when the adapter is saved, so that its prefixes would not be what was trained; "
                    "use another init, or turn nested off"
                )
            if own:
                ranks = powers_of_two(max(each.rank for each in own))
                adapters[name] = replace(record, provenance={**record.provenance, NESTED: list(ranks)})
            self.factors += own
        self.ranks = powers_of_two(max((each.rank for each in self.factors), default=1))

    def rank_at(self, step: int) -> int:
        """The rank of the step with this number, from 0."""
        turn, place = divmod(step, len(self.ranks))
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return self.ranks[int(torch.randperm(len(self.ranks), generator=draw)[place])]

    def step(self, step: int) -> AbstractContextManager[None]:
        """A ``with`` block in which the rank of this step takes part: for its forward and backward passes."""
        return prefix(self.factors, self.rank_at(step))


def powers_of_two(rank: int) -> tuple[int, ...]:
    """1, 2, 4, ... as far as they are below `rank`, and `rank` itself."""
    return (*(2**i for i in range((rank - 1).bit_length())), rank)
