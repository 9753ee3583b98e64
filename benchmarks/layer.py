"""One adapted linear layer, forward and backward, against the frozen layer alone (the limit), the eager form and peft.

    python -m benchmarks.layer

The limit is the frozen layer's forward and the gradient of its input: no LoRA work at all.
"""

from functools import partial

import peft
import torch
from torch import Tensor, nn

import weft
from benchmarks.harness import compare, record
from weft.ops import linear

SHAPES = [(512, 64, 64, 8), (512, 256, 704, 16), (1024, 768, 768, 8), (1024, 768, 3072, 16)]  # T, in, out, r


def step(model: nn.Module, x: Tensor, g: Tensor) -> None:
    """A forward pass, and the gradients of the input and of what is trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(model(x), [x, *parameters], g)


class Eager(nn.Module):
    """The plain form: three products and an addition."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features)
        self.B = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output plus 2 B A x."""
        return self.base(x) + 2.0 * linear(x, self.A, self.B)


def main(rounds: int = 40) -> None:
    """Measures and records."""
    for tokens, width, out, rank in SHAPES:
        torch.manual_seed(0)
        base = nn.Linear(width, out, bias=False).requires_grad_(False)
        x, g = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, out)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])
        theirs = peft.get_peft_model(nn.Sequential(nn.Linear(width, out, bias=False)), config)
        ours = weft.attach(
            nn.Sequential(nn.Linear(width, out, bias=False)), weft.LoRAConfig(rank=rank, alpha=2 * rank, targets="0")
        )
        variants = {"limit": base, "eager": Eager(base, rank), "peft": theirs, "weft": ours}
        found = compare({name: partial(step, model, x, g) for name, model in variants.items()}, rounds)
        record("layer", found, tokens=tokens, width=width, out=out, rank=rank)


if __name__ == "__main__":
    main()
