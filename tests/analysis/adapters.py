"""Adapters made in place."""

import torch

import weft


def adapter_of(factors: dict[str, weft.LowRank], **rest: object) -> weft.Adapter:
    return weft.Adapter(weft.LoRAConfig(), factors, dict.fromkeys(factors, weft.Layout()), **rest)  # type: ignore[arg-type]


def low_rank(out: int = 12, width: int = 10, rank: int = 4, scale: float = 1.0) -> weft.LowRank:
    return weft.LowRank(torch.randn(out, rank) * scale, torch.randn(rank, width), 0.5)


def small(seed: int = 0, blocks: int = 3, **rest: object) -> weft.Adapter:
    """Two kinds of module in each block, and one outside."""
    torch.manual_seed(seed)
    factors = {
        f"model.layers.{block}.{kind}": low_rank(scale=1 + block)
        for block in range(blocks)
        for kind in ("attn.q_proj", "mlp.up_proj")
    }
    return adapter_of(factors | {"lm_head": low_rank(20)}, **rest)
