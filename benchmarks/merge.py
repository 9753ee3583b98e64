"""Merging and unmerging: weft's snapshot and patch against peft, on the linear layers of one width.

    python -m benchmarks.merge [quick]

Beside the times, the share of the weights that all cycles changed, and the bytes held to undo one: peft subtracts,
weft restores.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import peft
import torch
from torch import Tensor, nn

import weft
from benchmarks.harness import Case, Options, compare, main
from benchmarks.records import Figures

WIDTH, LAYERS, RANK = 768, 24, 16


def base(width: int) -> nn.Module:
    """A stack of square linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def measure(width: int, seconds: float) -> Figures:
    """Seconds of one cycle, share changed after all, bytes held."""
    ours = weft.attach(base(width), weft.LoRAConfig(rank=RANK))
    names = [str(i) for i in range(LAYERS)]
    theirs = peft.get_peft_model(base(width), peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=names))
    with torch.no_grad():
        for model in (ours, theirs):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.02)
    held: dict[str, int] = {}

    def cycle(undo: Literal["snapshot", "patch"]) -> None:
        held[undo] = weft.merge(ours, undo=undo).undo_bytes
        weft.unmerge(ours)

    def peft_cycle() -> None:
        theirs.merge_adapter()
        theirs.unmerge_adapter()

    figures = compare(
        {"peft": peft_cycle, "weft, snapshot": partial(cycle, "snapshot"), "weft, patch": partial(cycle, "patch")},
        seconds,
    )
    before = [layer.weight for layer in base(width)]
    share = changed(before, [layer.weight for layer in ours])
    figures["peft"]["share_changed"] = [changed(before, [layer.base_layer.weight for layer in theirs.base_model.model])]
    for undo in ("snapshot", "patch"):
        figures[f"weft, {undo}"] |= {"share_changed": [share], "undo_bytes": [held[undo]]}
    return figures


def changed(before: list[Tensor], after: list[Tensor]) -> float:
    """The share of entries that differ."""
    return sum(int((a != b).sum()) for a, b in zip(before, after, strict=True)) / sum(a.numel() for a in before)


def cases(options: Options) -> Iterator[Case]:
    """One width."""
    width = 64 if options.effort == "tiny" else WIDTH
    yield Case("merge", {"width": width, "layers": LAYERS, "rank": RANK}, partial(measure, width, options.seconds))


if __name__ == "__main__":
    main(cases)
