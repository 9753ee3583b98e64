"""Merging and unmerging: weft's snapshot and patch against peft, on the linear layers of one width.

    python -m benchmarks.merge

Beside the times it records the share of the weights that one cycle changed: peft subtracts, weft restores.
"""

import peft
import torch
from torch import nn

import weft
from benchmarks.harness import compare, record

WIDTH, LAYERS, RANK = 768, 24, 16


def base() -> nn.Module:
    """A stack of square linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def with_weft() -> nn.Module:
    """The stack under a weft adapter that does something."""
    model = weft.attach(base(), weft.LoRAConfig(rank=RANK))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.02)
    return model


def with_peft() -> peft.PeftModel:
    """The stack under a peft adapter that does something."""
    names = [str(i) for i in range(LAYERS)]
    model = peft.get_peft_model(base(), peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    return model


def main(rounds: int = 10) -> None:
    """Measures and records."""
    ours, theirs = with_weft(), with_peft()
    undo_bytes = {}
    before = [layer.weight.detach().clone() for layer in base()]

    def cycle(undo: str) -> None:
        undo_bytes[undo] = weft.merge(ours, undo=undo).undo_bytes  # type: ignore[arg-type]
        weft.unmerge(ours)

    def peft_cycle() -> None:
        theirs.merge_adapter()
        theirs.unmerge_adapter()

    found = compare(
        {"peft": peft_cycle, "weft, snapshot": lambda: cycle("snapshot"), "weft, patch": lambda: cycle("patch")}, rounds
    )
    drift = {
        "weft": changed(before, [layer.weight for layer in ours]),
        "peft": changed(before, [layer.base_layer.weight for layer in theirs.base_model.model]),
    }
    print("share of the weights changed after all cycles:", {name: f"{share:.2%}" for name, share in drift.items()})
    record("merge", found, width=WIDTH, layers=LAYERS, rank=RANK, undo_bytes=undo_bytes, drift=drift)


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The share of entries that differ."""
    return sum(int((a != b).sum()) for a, b in zip(before, after, strict=True)) / sum(a.numel() for a in before)


if __name__ == "__main__":
    main()
