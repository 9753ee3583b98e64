"""Below the lowest adapted layer, nothing is kept for the backward pass, and nothing differentiated."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, TrainingArguments

import weft
from weft.data.packed import PackedCollator
from weft.data.text import Collator
from weft.training import AdapterTrainer


@dataclass(eq=False)
class Kept:
    """A tensor that is kept for the backward pass, and the part of the model that did it."""

    tensor: Tensor
    where: str


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("collate", [PackedCollator(), Collator(1)])
def test_nothing_is_kept_or_differentiated_below(
    tmp_path: Path, model: LlamaForCausalLM, collate: Callable[[Any], dict[str, Tensor]], checkpointing: bool
) -> None:
    weft.attach(model, weft.LoRAConfig(rank=2, layers=(1,)))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.1)
    where: list[str] = []
    saved: list[weakref.ref[Kept]] = []
    alive: set[str] = set()
    differentiated: set[str] = set()
    parts = {"embedding": model.model.embed_tokens, "layer 0": model.model.layers[0], "layer 1": model.model.layers[1]}

    def watch(name: str, part: nn.Module) -> None:
        part.register_forward_pre_hook(lambda module, args: where.append(name))
        part.register_forward_hook(lambda module, args, output: where.pop() and None)
        for each in part.modules():
            each.register_forward_hook(lambda module, args, output: note(name, output))

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: differentiated.add(name))

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor, where[-1] if where else "after")
        saved.append(weakref.ref(kept))
        return kept

    def look(gradient: Tensor) -> None:
        alive.update(kept.where for each in saved if (kept := each()) is not None)

    for name, part in parts.items():
        watch(name, part)
    model.model.norm.register_forward_hook(
        lambda module, args, output: output.register_hook(look) and None if output.requires_grad else None
    )
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    data = [{"input_ids": [7, 8, 9, 10 + i], "labels": [-100, 8, 9, 10 + i]} for i in range(4)]
    trainer = AdapterTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        trainer.train()
    assert differentiated == {"layer 1"}
    assert alive == {"layer 1", "after"}
