"""Dropping at random: set entries of a matrix to zero by chance, and rescale the others so that the mean stays.

DARE (Yu et al., 2023, arXiv 2311.03099), section 3: an entry stays with probability `density` (1 - p in the paper's
words) and is then divided by it.
"""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from weft.algebra.rows import Term


class Dropped:
    """A term whose entries each stay with probability `density`, divided by it, or are dropped.

    Which ones stay follows from the seed, the module's path and the adapter's place: they name a stream of random
    32-bit numbers (PCG64 DXSM), of which entry (i, j) has its own, whatever rows are read and in whatever order. It is
    drawn on the CPU, so it is the same on every device.

    Args:
        term: the change of one module by one adapter.
        density: the probability to stay, 0 < density <= 1.
        seed: chooses among the ways to drop.
        path: the module.
    """

    def __init__(self, term: Term, density: float, seed: int, path: str) -> None:
        self.term = term
        self._rescaled = replace(term, B=term.B / density)
        name = f"{seed} {term.place} {path}"
        self._stream = int.from_bytes(hashlib.sha256(name.encode()).digest())
        # The 2^32 numbers start at -2^31; as many of them stay as is nearest to the share.
        self._last_kept = max(round(density * 2**32), 1) - 1 - 2**31

    def read(self, rows: slice) -> Tensor:
        """These rows of the matrix (b, in) with entries dropped."""
        entries = self._rescaled.read(rows)
        return entries.mul_(self._kept(rows).to(entries))

    def _kept(self, rows: slice) -> Tensor:
        """1 for an entry that stays and 0 for one that is dropped (b, in), int32."""
        n = self.term.shape[1]
        draws = (n + 1) // 2  # of 64 bits, for a row
        generator = np.random.PCG64DXSM(self._stream)
        generator.advance(rows.start * draws)
        numbers = generator.random_raw((rows.stop - rows.start) * draws).view(np.int32)
        return torch.from_numpy(numbers).view(-1, 2 * draws)[:, :n].le_(self._last_kept)
