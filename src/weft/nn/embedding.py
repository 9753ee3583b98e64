"""Embeddings: the table (V, d) plus s B A, with B (V, r) and A (r, d).

The gradient of B is dense, whether or not the base asks for sparse ones; the row of `padding_idx` gets
none. `max_norm` is refused: it rewrites W in the forward pass, and W is to stay still.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weft import ops
from weft.adapter import Layout
from weft.nn.base import Factors, LoRALayer, differs_from_base, register_layer_kind


@register_layer_kind
class LoRAEmbedding(LoRALayer):
    """y = (W + s B A)[ids], for W (V, d)."""

    kind = "embedding"
    output_dim = 1
    padding_idx: int | None
    scale_grad_by_freq: bool

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.Embedding)

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            return "max_norm rewrites the weight in every forward pass, and an adapter's base must stay still"
        if type(module).forward is nn.Embedding.forward or isinstance(module, LoRALayer):
            return None
        example = torch.arange(min(4, module.num_embeddings), device=module.weight.device)
        if differs_from_base(module, lambda ids: F.embedding(ids, module.weight), example):
            return f"its class {type(module).__name__} computes something other than W[ids]"
        return None

    @classmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, nn.Embedding)
        return module.num_embeddings, module.embedding_dim

    @classmethod
    def layout(cls, module: nn.Module) -> Layout:
        return Layout("embedding")

    @classmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        assert isinstance(module.weight, Tensor)
        return module.weight

    def branch_input(self, x: Tensor, factors: Factors) -> Tensor:
        """The ids as they are: there is nothing to drop in them (a plan refuses dropout here)."""
        return x

    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return ops.embedding(x, A, B, self.padding_idx, self.scale_grad_by_freq, self.weight.dtype)

    def add_product(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        y = self.base_output(x) if output is None else output
        return ops.add_embedding(y, x, *factors.pair(), scaling, self.padding_idx, self.scale_grad_by_freq)
