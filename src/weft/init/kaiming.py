"""A uniform in +-1/sqrt(in), B zero: torch's own start of a linear layer, the choice of the paper's released code."""

import math

import torch
from torch import Tensor

from weft.config import Kaiming
from weft.init.start import Start, start_factors, start_from


@start_factors.register
def _(init: Kaiming, W: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Start:
    out, width = W.shape
    bound = 1 / math.sqrt(width)
    A = torch.empty(rank, width, dtype=dtype, device=W.device)
    return start_from(A if A.is_meta else A.uniform_(-bound, bound), out)
