"""A plan from the meta device is what a real step takes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_llama import token_ids
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import weft
from weft.memory import MemoryPlan, MemoryReport, Sketch, batch_on_meta, free_memory, on_meta, plan_memory
from weft.memory.live import LiveMemory
from weft.memory.meta import own_loss
from weft.training.token_loss import likely_head, token_loss

CONFIG = weft.LoRAConfig(rank=4)


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(dtype)


def in_chunks(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    assert isinstance(model, LlamaForCausalLM)
    head = likely_head(model)
    assert head is not None
    hidden = model.base_model(input_ids=batch["input_ids"])[0]
    return token_loss(head, hidden[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def batch() -> dict[str, Tensor]:
    ids = token_ids(rows=4, length=32)
    return {"input_ids": ids, "labels": ids}


def sketch(model: nn.Module, **options: Any) -> Sketch:
    return Sketch(on_meta(model), batch_on_meta(batch()), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [own_loss, in_chunks], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, targets=("q_proj",), layers=(1,))], ids=["all", "few"])
def test_the_peak_is_that_of_a_real_step(
    dtype: torch.dtype, loss: Callable[..., Tensor], checkpointing: bool, config: weft.LoRAConfig
) -> None:
    model = llama(dtype)
    plan = plan_memory(sketch(model, loss=loss), config, gradient_checkpointing=checkpointing)
    weft.attach(model, config).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    trained = list(weft.trainable_parameters(model))
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    with LiveMemory() as live:
        loss(model, batch()).backward()
    assert plan.activations + max(plan.logits, plan.working) == pytest.approx(live.peak, rel=0.02)
    assert plan.weights == pytest.approx(sum(p.nbytes for p in llama(dtype).parameters()), rel=1e-3)  # and buffers
    assert plan.adapter == plan.gradients == sum(p.nbytes for p in trained)
    assert plan.optimizer == 2 * plan.adapter


def test_a_padded_batch_counts_its_mask_and_does_not_ask_for_values() -> None:
    model, rows = llama(), batch()
    padded = Sketch(on_meta(model), batch_on_meta({**rows, "attention_mask": torch.ones_like(rows["input_ids"])}))
    without = plan_memory(sketch(model), CONFIG)
    assert plan_memory(padded, CONFIG).activations == without.activations  # a mask that masks nothing
    masked = plan_memory(replace(padded, model=on_meta(model), padded=True), CONFIG)
    scores = 4 * 32 * 32  # of every row
    assert masked.activations - without.activations >= 3 * 4 * scores  # in float32, for each of three blocks


def test_a_base_of_other_bytes_counts_them() -> None:
    assert plan_memory(sketch(llama(), weights=17), CONFIG).weights == 17


def test_a_model_is_copied_to_the_meta_device_and_stays() -> None:
    model = llama()
    weight = model.lm_head.weight
    copied = on_meta(model)
    assert all(tensor.is_meta for tensor in (*copied.parameters(), *copied.buffers()))
    assert list(copied.state_dict()) == list(model.state_dict())
    assert model.lm_head.weight is weight
    assert not weight.is_meta


def test_a_report_says_what_does_not_fit_and_what_to_do() -> None:
    plan = MemoryPlan(
        weights=10**9, adapter=0, gradients=0, optimizer=0, activations=10**9, logits=3 * 10**8, working=5 * 10**8
    )
    report = partial(MemoryReport, plan, (8, 512), torch.bfloat16, torch.device("cpu"))
    assert plan.total == 25 * 10**8
    assert report(plan.total).too_much is report(None).too_much is None
    assert "needs about 2.50 GB, and cpu has 2.00 GB free: lower batch_size" in str(report(2 * 10**9).too_much)
    lines = str(report(2 * 10**9)).splitlines()
    assert lines[0] == "memory on cpu, base in bfloat16, batch of 8 x 512:"
    assert lines[-2].split() == ["total,", "at", "the", "peak", "2,500.0", "MB"]


def test_the_cpu_says_what_is_free() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert free > 2**20
    assert free_memory(torch.device("meta")) is None
