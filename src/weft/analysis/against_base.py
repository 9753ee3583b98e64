"""An adapter's changes beside the weights that they change; the weights come one at a time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapter import Adapter
from weft.analysis.intruders import Intruders, Search, intruders
from weft.errors import ConfigError
from weft.linalg import LowRank
from weft.linalg.factorize import count_nonzero


@dataclass(frozen=True)
class BaseComparison:
    """One module's change D beside its weight W (out, in), a matrix as D is one.

    Section 7.3 and table 7 of the LoRA paper (arXiv 2106.09685): U (out, k) and V (in, k) are the singular vectors of
    D, with k its numerical rank. W projected on them says how much of what D does is in W already.

    Attributes:
        path: the module.
        weight_norm: ||W||_F.
        relative_norm: ||D||_F / ||W||_F; None for W = 0.
        projected_norm: ||U^T W V||_F.
        chance_norm: what that is for random U and V, in the root mean square: k ||W||_F / sqrt(out * in).
        amplification: ||D||_F / ||U^T W V||_F, by how much D amplifies what of its directions is in W; None for D = 0,
            or where nothing of them is in W.
        intruders: the intruder dimensions, if they were asked for.
    """

    path: str
    weight_norm: float
    relative_norm: float | None
    projected_norm: float
    chance_norm: float
    amplification: float | None
    intruders: Intruders | None


@torch.no_grad()
def against_base(
    adapter: Adapter, weight: Callable[[str], Tensor], search: Search | None = None
) -> Iterator[BaseComparison]:
    """Compares each module's change with its weight, a module at a time.

    Costs 2 out * in * r and one look at each weight; with `search`, many products more (see `intruders`).

    Args:
        adapter: the adapter.
        weight: gives the matrix (out, in) that a module's factors change, by its path; called once for each module.
        search: look for intruder dimensions, too.

    Raises:
        ConfigError: a weight of another shape than its change, or one that holds NaN or infinity.
    """
    for path, D in adapter.factors.items():
        W = weight(path)
        if tuple(W.shape) != D.shape:
            raise ConfigError(f"{path}: the weight is {tuple(W.shape)} and its change {D.shape}; name the right base")
        norm = float(torch.linalg.vector_norm(W))
        if not math.isfinite(norm):
            raise ConfigError(f"{path}: the base's weight holds NaN or infinity; nothing can be compared with it")
        yield _comparison(path, D, W, norm, search)


def _comparison(path: str, D: LowRank, W: Tensor, weight_norm: float, search: Search | None) -> BaseComparison:
    svd = D.svd()
    rank = int(count_nonzero(svd.S, D.shape, None))
    U, V = svd.U[:, :rank].to(W.dtype), svd.Vh[:rank].to(W.dtype)
    norm = float(torch.linalg.vector_norm(svd.S))
    projected = float(torch.linalg.matrix_norm((U.T @ W) @ V.T)) if rank else 0.0
    return BaseComparison(
        path,
        weight_norm,
        norm / weight_norm if weight_norm > 0 else None,
        projected,
        rank * weight_norm / math.sqrt(W.shape[0] * W.shape[1]),
        norm / projected if projected > 0 else None,
        intruders(W, D, search) if search is not None else None,
    )
