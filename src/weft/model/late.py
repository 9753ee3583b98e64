"""Factors and companions of a base on the meta device: made without memory, and started once they get some."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from weft.config import Initializer
from weft.init import start_factors
from weft.nn import CompanionPart, Factors


@dataclass(eq=False)
class LateStart:
    """Gives factors their first values, as attaching would have: the same ones, in the same order, from the same seed.

    Modules that share factors share this too, and share them again afterwards: torch gives each module memory of its
    own.

    Attributes:
        init: the initializer.
        shape: (out, in) of the weight.
        rank: r.
        scaling: s.
        started: the factors that have their values already.
    """

    init: Initializer
    shape: tuple[int, int]
    rank: int
    scaling: float
    started: Factors | None = None

    @torch.no_grad()
    def __call__(self, factors: nn.Module) -> None:
        assert isinstance(factors, Factors)
        if self.started is not None:
            factors.lora_A, factors.lora_B = self.started.lora_A, self.started.lora_B
            return
        A, B = factors.pair()
        # The weight's shape alone. An initializer that reads the weight refuses a base on the meta device; one that
        # should, and does not, finds nothing that could be taken for a weight.
        W = torch.full((1, 1), math.nan, dtype=A.dtype, device=A.device).expand(self.shape)
        start = start_factors(self.init, W, self.rank, self.scaling, A.dtype)
        A.copy_(start.A)
        B.copy_(start.B)
        self.started = factors


@torch.no_grad()
def start_late(part: nn.Module) -> None:
    """Gives a companion that needs nothing of the base its first values."""
    assert isinstance(part, CompanionPart)
    part.start(None)
