"""Greedy generation on the 39M Llama: the base, weft's adapter unmerged and merged, and peft's unmerged.

python -m benchmarks.generate [quick]
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

import weft
from benchmarks.harness import Case, Options, compare, device, main
from benchmarks.models import SIZES, sharing_weights, with_peft, with_weft
from benchmarks.records import Figures, Setting

RANK, PROMPT = 8, 16


def measure(size: str, batch: int, tokens: int, seconds: float) -> Figures:
    """Seconds of `tokens` new tokens for each of `batch` prompts."""
    base = SIZES[size].model().requires_grad_(False).eval()
    merged = with_weft(SIZES[size].model(), RANK)  # weights of its own, for it changes them
    weft.merge(merged)
    models = {
        "base": sharing_weights(base),
        "weft": with_weft(base, RANK),
        "weft, merged": merged,
        "peft": with_peft(base, RANK),
    }
    ids = SIZES[size].batch()["input_ids"][:1, :PROMPT].expand(batch, -1)

    def generate(model: nn.Module) -> None:
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )

    return compare({name: partial(generate, model.eval()) for name, model in models.items()}, seconds)


def cases(options: Options) -> Iterator[Case]:
    """Batches of 1 and, but for a quick look, 8."""
    size, tokens = {"full": ("39M", 64), "quick": ("5M", 16), "tiny": ("0.5M", 2)}[options.effort]
    for batch in (1,) if options.effort == "quick" else (1, 8):
        setting: Setting = {"model": size, "rank": RANK, "batch": batch, "tokens": tokens, "device": device()}
        yield Case("generate", setting, partial(measure, size, batch, tokens, 3 * options.seconds))


if __name__ == "__main__":
    main(cases)
