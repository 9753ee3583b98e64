"""PiSSA: the factors start as the principal part of W (Meng et al., 2024, arXiv 2404.02948).

W itself stays: s B0 A0, the rank-r part of W, is subtracted in the layer. So nothing about the base
changes, and the adapter that is saved is the plain low-rank difference s (B A - B0 A0), of rank 2r.
"""

import torch
from torch import Tensor

from weft.config import PiSSA
from weft.errors import ConfigError
from weft.init.start import Start, start_factors
from weft.linalg import randomized_svd, svd


@start_factors.register
def _(init: PiSSA, W: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Start:
    if W.is_meta or not W.is_floating_point():
        raise ConfigError(
            f"init=PiSSA reads the weight, and this one holds no values to read ({W.dtype} on {W.device})"
        )
    if scaling <= 0:
        raise ConfigError(f"init=PiSSA needs a positive alpha, found a scaling of {scaling:g}")
    matrix = W.detach().to(dtype)
    if init.num_power_iters is None:
        whole = svd(matrix)
    else:
        whole = randomized_svd(matrix, rank, num_power_iters=init.num_power_iters).svd
    root = (whole.S[:rank] / scaling).sqrt()
    B, A = (whole.U[:, :rank] * root).contiguous(), (root.unsqueeze(1) * whole.Vh[:rank]).contiguous()
    # Laid out in memory as the factors are: another layout is multiplied, and rounded, in another way.
    return Start(A, B, (A.clone(), B.clone()))
