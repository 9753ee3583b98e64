"""One adapted linear layer against the frozen layer alone (the limit), the eager form and peft.

    python -m benchmarks.layer [quick]

Training: forward, and the gradients of the input and the factors; the limit is the frozen layer's forward and the
gradient of its input. Decoding: one token, without gradients.
"""

from collections.abc import Iterator
from functools import partial

import peft
import torch
from torch import Tensor, nn

import weft
from benchmarks.harness import Case, Options, compare, device, main
from benchmarks.records import Figures, Setting
from weft.ops import linear

DROPOUTS = (0.0, 0.05)
SHAPES = [(512, 64, 64), (512, 256, 704), (1024, 768, 768), (1024, 768, 3072)]  # tokens, in, out
RANKS = (4, 8, 16, 64)
CALLS = 100  # a decoding call takes microseconds


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


def variants(width: int, out: int, rank: int, dropout: float) -> dict[str, nn.Module]:
    """The layer in every form."""
    torch.manual_seed(0)
    base = nn.Linear(width, out, bias=False).requires_grad_(False)
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=["0"])
    config = weft.LoRAConfig(rank=rank, alpha=2 * rank, dropout=dropout, targets="0")
    models: dict[str, nn.Module] = {
        "limit": nn.Sequential(base),
        "eager": nn.Sequential(Eager(base, rank, dropout)),
        "peft": peft.get_peft_model(nn.Sequential(nn.Linear(width, out, bias=False)), settings).base_model.model,
        "weft": weft.attach(nn.Sequential(nn.Linear(width, out, bias=False)), config),
    }
    return {name: model.to(device()) for name, model in models.items()}


def training(tokens: int, width: int, out: int, rank: int, dropout: float, seconds: float) -> Figures:
    """Seconds of forward and backward."""
    models = variants(width, out, rank, dropout)
    x = torch.randn(tokens, width, device=device(), requires_grad=True)
    g = torch.randn(tokens, out, device=device())

    def step(model: nn.Module) -> None:
        torch.autograd.grad(model(x), [x, *(p for p in model.parameters() if p.requires_grad)], g)

    return compare({name: partial(step, model) for name, model in models.items()}, seconds, rounds=(5, 200))


def decoding(width: int, out: int, rank: int, seconds: float) -> Figures:
    """Seconds of one token, mean of many calls."""
    models = variants(width, out, rank, 0.0)
    x = torch.randn(1, width, device=device())
    with torch.no_grad():
        calls = {name: partial(model.eval()[0], x) for name, model in models.items()}  # type: ignore[index]
        return compare(calls, seconds, calls=CALLS)


def cases(options: Options) -> Iterator[Case]:
    """All shapes, ranks and dropouts."""
    full = options.effort == "full"
    shapes = SHAPES if full else SHAPES[1:2]
    for tokens, width, out in shapes:
        for rank in RANKS if full else (8,):
            shape: Setting = {"width": width, "out": out, "rank": rank, "device": device()}
            for dropout in DROPOUTS:
                setting: Setting = {"tokens": tokens, **shape, "dropout": dropout}
                measure = partial(training, tokens, width, out, rank, dropout, options.seconds / 8)
                yield Case("layer", setting, measure)
            yield Case("decode", shape, partial(decoding, width, out, rank, options.seconds / 8))


if __name__ == "__main__":
    main(cases)
