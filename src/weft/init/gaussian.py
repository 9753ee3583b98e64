"""A normal with standard deviation 1/r, B zero (Hu et al., 2021, section 4.1)."""

import torch
from torch import Tensor

from weft.config import Gaussian
from weft.init.start import Start, start_factors, start_from


@start_factors.register
def _(init: Gaussian, W: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Start:
    out, width = W.shape
    A = torch.empty(rank, width, dtype=dtype, device=W.device)
    return start_from(A if A.is_meta else A.normal_(std=1 / rank), out)
