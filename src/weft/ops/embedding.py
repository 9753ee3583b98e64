"""The adapter's branch of an embedding, added to the base's rows by one accumulating product."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_embedding"]


def add_embedding(
    y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    """y + s (B A)[ids]: `reference.embedding`, scaled and added.

    Args:
        y: (..., d), the base's rows.
        ids: (...), whole numbers below V.
        A: (r, d).
        B: (V, r); the row `padding_idx` gets no gradient, as in torch's embedding.
        scaling: s.
        padding_idx: the padding row, or None.
        scale_grad_by_freq: divide a row's gradient by how often it occurs in `ids`.

    Returns:
        (..., d), in the dtype of y.
    """
    h = F.embedding(ids, B, padding_idx, scale_grad_by_freq=scale_grad_by_freq).to(y.dtype)
    with torch.autocast(
        "cpu" if y.is_meta else y.device.type, enabled=False
    ):  # the base's rows are not rounded under it either
        return torch.addmm(y.reshape(-1, y.shape[-1]), h.view(-1, h.shape[-1]), A.to(y.dtype), alpha=scaling).view(
            y.shape
        )
