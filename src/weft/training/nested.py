"""Nested factors: each of their prefixes is trained, so that the rank can be chosen after the training.

In an optimizer step only the first b rows of A and columns of B take part, the same b in every module. Rank b of the
finished adapter is then its prefix, which is what was trained: its scaling stays that of the whole. So does DyLoRA
(Valipour et al., 2022, arXiv 2210.07558), which draws b from all ranks in every step. Here

  - the first half of a run trains the whole alone. Then the factors are sorted: B A stays, and its prefixes become its
    truncated SVDs, from which the second half goes on;
  - in the second half every other step trains the whole still, and those between go through the powers of two below,
    the sizes of a Matryoshka representation (Kusupati et al., 2022, arXiv 2205.13147), each as often as the others, in
    an order that the seed decides.

Both are there because a rank learns the more slowly the fewer steps it has: `benchmarks.nested_ranks` measures what is
lost against runs at each rank of their own.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from weft.errors import ConfigError
from weft.linalg import LowRank
from weft.model.prefix import NESTED, factors_of, prefix
from weft.model.state import state_of
from weft.nn import Factors


class Nesting:
    """Which rank takes part in which optimizer step of a model's trainable adapters.

    It depends on the seed and the number of the step alone, so that a resumed run, and each of several processes,
    finds the same. The adapters' provenance says that they are nested from the second half on.

    Args:
        model: with adapters attached.
        seed: the run's seed.

    Raises:
        StateError: nothing is attached.
        ConfigError: an initializer whose start is subtracted again: what is saved would be no prefix.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed = seed
        self._adapters = state_of(model).adapters
        self._own = {name: factors_of(model, name) for name, record in self._adapters.items() if record.trainable}
        self.factors = [each for own in self._own.values() for each in own]
        self.ranks = powers_of_two(max((each.rank for each in self.factors), default=1))
        self._begun = False
        for name, own in self._own.items():
            if any(each.offset() is not None for each in own):
                init = self._adapters[name].config.init.name
                raise ConfigError(
                    f"nested: the initializer {init!r} starts from a part of the weight, which is taken off again when "
                    "the adapter is saved, so that its prefixes would not be what was trained; use another init, or "
                    "turn nested off"
                )

    def step(self, step: int, steps: int, optimizer: Optimizer) -> AbstractContextManager[None]:
        """A ``with`` block in which the rank of a step takes part: for its forward and backward passes.

        Args:
            step: its number, from 0.
            steps: of the whole run.
            optimizer: forgets its moments of the factors when these are sorted, in the first step of the second half.
        """
        rank = self.rank_at(step, steps)
        if rank is None:
            return nullcontext()
        if not self._begun:  # a step may have several batches
            if step == steps // 2:  # else it was done before the run was resumed
                sort(self.factors)
                for each in self.factors:
                    for parameter in (each.lora_A, each.lora_B):
                        optimizer.state.pop(parameter, None)
            self._begun = True
            self.mark(step + 1, steps)
        return prefix(self.factors, rank)

    def mark(self, done: int, steps: int) -> None:
        """Makes the adapters' provenance say what holds of the weights after so many of all steps: nested or not."""
        for name, own in self._own.items():
            record = self._adapters[name]
            provenance = {key: value for key, value in record.provenance.items() if key != NESTED}
            if own and done > steps // 2:
                provenance[NESTED] = list(powers_of_two(max(each.rank for each in own)))
            self._adapters[name] = replace(record, provenance=provenance)

    def rank_at(self, step: int, steps: int) -> int | None:
        """The rank of a step; None for the whole, in the first half."""
        if step < steps // 2:
            return None
        *lower, whole = self.ranks
        turn, between = divmod(step - steps // 2, 2)
        if between or not lower:
            return whole
        turn, place = divmod(turn, len(lower))
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return lower[int(torch.randperm(len(lower), generator=draw)[place])]


@torch.no_grad()
def sort(factors: Iterable[Factors]) -> None:
    """Makes each prefix of the factors, in place, the truncated SVD of B A, which stays what it is up to rounding.

    The rows of A become orthogonal, all of the length that they had in the mean, and B takes the singular values: as at
    the start of a training, so that a row whose singular value is zero can still learn.
    """
    for each in {id(each.lora_A): each for each in factors}.values():  # what modules share is sorted once
        A, B = each.lora_A, each.lora_B
        svd = LowRank(B, A).svd()
        kept, length = len(svd.S), A.norm() / each.rank**0.5
        A[:kept] = length * svd.Vh
        B.zero_()
        B[:, :kept] = svd.U * svd.S / length


def powers_of_two(rank: int) -> tuple[int, ...]:
    """1, 2, 4, ... as far as they are below `rank`, and `rank` itself."""
    return (*(2**i for i in range((rank - 1).bit_length())), rank)
