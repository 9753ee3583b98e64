"""Logits only where a label is: the same loss and gradients, from less work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

import weft
from tests.families import LLAMA
from weft.training import AdapterTrainer
from weft.training.logits import keeps_logits, learned_positions, with_learned_logits


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 30, (3, 24))
    labels = ids.clone()
    labels[0, :20], labels[1, :15], labels[1, 21:], labels[2, :18] = -100, -100, -100, -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_positions_are_those_before_a_label() -> None:
    labels = torch.tensor([[-100, -100, 5, -100], [-100, -100, -100, -100]])
    assert learned_positions(labels).tolist() == [1]
    assert learned_positions(torch.full((2, 4), -100)).numel() == 1


def llama() -> t.PreTrainedModel:
    return t.LlamaForCausalLM(t.LlamaConfig(**LLAMA))


def experts() -> t.PreTrainedModel:
    """A model whose loss is more than that of its logits, so that its head is not used apart."""
    return t.MixtralForCausalLM(t.MixtralConfig(**LLAMA, num_local_experts=4, output_router_logits=True))


@pytest.mark.parametrize(("make", "made"), [(llama, 16), (experts, 9)])
@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_are_those_of_all_logits(
    tmp_path: Path, items: int | None, make: Callable[[], t.PreTrainedModel], made: int
) -> None:
    torch.manual_seed(0)
    model = weft.attach(make(), weft.LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.1)
    arguments = t.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = AdapterTrainer(model=model, args=arguments)
    assert (trainer.head is None) == (make is experts)
    inputs, sizes = batch(), []
    hook: Callable[[Any, Any, Any], None] = lambda module, x, y: sizes.append(y.shape[-2])  # noqa: E731
    model.lm_head.register_forward_hook(hook)
    found = trainer.compute_loss(model, inputs, num_items_in_batch=items)
    expected, _ = trainer.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
    assert sizes == [made, 24]  # the learned tokens, or the positions at which some row has one; and all
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    parameters = list(weft.trainable_parameters(model))
    for mine, theirs in zip(*(torch.autograd.grad(loss, parameters) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_be_asked_is_left_as_it_is() -> None:
    assert not keeps_logits(torch.nn.Linear(2, 2))
    inputs = batch()
    assert set(with_learned_logits(inputs)) - set(inputs) == {"logits_to_keep", "shift_labels"}
