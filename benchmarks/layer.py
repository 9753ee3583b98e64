"""One adapted linear layer, forward and backward, against the frozen layer alone (the limit), the eager form and peft.

    python -m benchmarks.layer

The limit is the frozen layer's forward and the gradient of its input: no LoRA work at all.
"""

from functools import partial
from itertools import product

import peft
import torch
from torch import Tensor, nn

import weft
from benchmarks.harness import compare, record
from weft.ops import linear

DROPOUTS = (0.0, 0.05)
SHAPES = [(512, 64, 64, 8), (512, 256, 704, 16), (1024, 768, 768, 8), (1024, 768, 3072, 16)]  # T, in, out, r


def step(model: nn.Module, x: Tensor, g: Tensor) -> None:
    """A forward pass, and the gradients of the input and of what is trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(model(x), [x, *parameters], g)


class Eager(nn.Module):
    """The plain form: three products and an addition."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(dropout)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features)
        self.B = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output plus 2 B A x."""
        return self.base(x) + 2.0 * linear(self.dropout(x), self.A, self.B)


def main(rounds: int = 40) -> None:
    """Measures and records."""
    for (tokens, width, out, rank), dropout in product(SHAPES, DROPOUTS):
        torch.manual_seed(0)
        base = nn.Linear(width, out, bias=False).requires_grad_(False)
        x, g = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, out)
        settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=["0"])
        theirs = peft.get_peft_model(nn.Sequential(nn.Linear(width, out, bias=False)), settings)
        config = weft.LoRAConfig(rank=rank, alpha=2 * rank, dropout=dropout, targets="0")
        ours = weft.attach(nn.Sequential(nn.Linear(width, out, bias=False)), config)
        variants = {"limit": base, "eager": Eager(base, rank, dropout), "peft": theirs, "weft": ours}
        found = compare({name: partial(step, model, x, g) for name, model in variants.items()}, rounds)
        record("layer", found, tokens=tokens, width=width, out=out, rank=rank, dropout=dropout)


if __name__ == "__main__":
    main()
