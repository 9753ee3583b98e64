"""Nested factors: each step trains a prefix, the same in every module, and the finished adapter is plain LoRA."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast, TrainingArguments

import weft
from weft.data.packed import PackedCollator
from weft.data.text import Collator
from weft.errors import ConfigError
from weft.model.prefix import factors_of
from weft.training import AdapterTrainer, RunConfig, TextDataset, load_text, run
from weft.training.checkpoint import trained_tensors
from weft.training.nested import NESTED, Nesting, powers_of_two

CONFIG = weft.LoRAConfig(rank=8, dropout=0.1, rank_pattern={"v_proj": 3})


@pytest.fixture
def data(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> TextDataset:
    return load_text(pairs, tokenizer)


def trainer(
    model: LlamaForCausalLM, data: TextDataset, folder: Path, collator: Any = None, **changes: Any
) -> AdapterTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "max_steps": 4,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = TrainingArguments(**(settings | changes))
    return AdapterTrainer(
        model=model, args=args, train_dataset=data, data_collator=collator or Collator(1), nested=True
    )


def test_the_ranks_are_powers_of_two_up_to_the_whole() -> None:
    assert [powers_of_two(rank) for rank in (1, 2, 3, 8, 12)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)
    ]  # fmt: skip


def test_each_rank_has_its_turn_and_the_step_alone_decides(model: LlamaForCausalLM) -> None:
    weft.attach(model, CONFIG)
    nesting = Nesting(model, seed=3)
    drawn = [nesting.rank_at(step) for step in range(400)]
    assert all(sorted(drawn[start : start + 4]) == [1, 2, 4, 8] for start in range(0, 400, 4))
    assert min(Counter(pairwise(drawn)).values()) > 5  # in no fixed order
    torch.manual_seed(77)
    assert [Nesting(model, seed=3).rank_at(step) for step in (399, 0, 7)] == [drawn[step] for step in (399, 0, 7)]
    assert [Nesting(model, seed=4).rank_at(step) for step in range(400)] != drawn


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("collator", [Collator(1), PackedCollator()], ids=["padded", "packed"])
def test_a_step_trains_one_prefix_and_leaves_the_rest(
    model: LlamaForCausalLM, data: TextDataset, tmp_path: Path, collator: Any, checkpointing: bool
) -> None:
    weft.attach(model, CONFIG)
    before = [(f.lora_A.detach().clone(), f.lora_B.detach().clone()) for f in factors_of(model)]
    seed = next(seed for seed in range(99) if Nesting(model, seed).rank_at(0) == 4)
    trainer(
        model, data, tmp_path, collator, max_steps=1, seed=seed, gradient_accumulation_steps=2,
        activation_checkpointing=checkpointing, activation_checkpointing_kwargs={"use_reentrant": False},
    ).train()  # fmt: skip
    for factors, (A, B) in zip(factors_of(model), before, strict=True):
        assert (factors.lora_B[:, :4] != B[:, :4]).any(0).all()  # every column of the prefix
        assert torch.equal(factors.lora_B[:, 4:], B[:, 4:])
        assert torch.equal(factors.lora_A[4:], A[4:])


def test_the_batches_of_a_step_share_its_rank(model: LlamaForCausalLM, data: TextDataset, tmp_path: Path) -> None:
    weft.attach(model, CONFIG)
    seen: list[set[int | None]] = []

    def note(body: LlamaModel, inputs: object) -> None:
        if body.training:
            seen.append({factors.prefix for factors in factors_of(model)})

    model.model.register_forward_pre_hook(note)
    made = trainer(model, data, tmp_path, gradient_accumulation_steps=3, max_steps=3)
    made.train()
    assert seen == [{Nesting(model, made.args.seed).rank_at(step)} for step in range(3) for _ in range(3)]
    assert {factors.prefix for factors in factors_of(model)} == {None}


def test_resumed_from_any_step_it_ends_in_the_same_weights(base: Path, data: TextDataset, tmp_path: Path) -> None:
    def made() -> AdapterTrainer:
        torch.manual_seed(3)
        model = weft.attach(LlamaForCausalLM.from_pretrained(base), CONFIG)
        return trainer(
            model, data, tmp_path, max_steps=8, gradient_accumulation_steps=2, save_strategy="steps", save_steps=1
        )

    def weights(made: AdapterTrainer) -> list[Tensor]:
        return [t.clone() for t in trained_tensors(made.attached).values()]

    whole = made()
    whole.train()
    for step in (3, 5, 8):
        again = made()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True)), step
        assert weft.collect(again.attached).provenance[NESTED] == [1, 2, 4, 8]


def test_a_run_says_that_it_was_nested_and_leaves_plain_lora(pairs: Path, base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rank": 4, "max_steps": 3, "learning_rate": 1e-2, "tensorboard": False}
    result = run(
        RunConfig(base=str(base), train=str(pairs), eval=str(pairs), output=tmp_path / "run", nested=True, **settings)
    )
    adapter = weft.load(result.adapter)
    assert adapter.provenance[NESTED] == [1, 2, 4]
    assert adapter.config.variant == weft.LoRA()
    ids = torch.arange(6, 40)[None]
    with torch.no_grad():
        mine = weft.attach(LlamaForCausalLM.from_pretrained(base), adapter)(ids).logits
        theirs = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), result.adapter)(ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert result.after is not None


def test_an_initializer_that_is_subtracted_again_is_refused(
    model: LlamaForCausalLM, data: TextDataset, tmp_path: Path
) -> None:
    weft.attach(model, weft.LoRAConfig(rank=2, init=weft.PiSSA()))
    with pytest.raises(ConfigError, match="nested: the initializer 'pissa' starts from a part of the weight"):
        trainer(model, data, tmp_path).train()
    assert NESTED not in weft.collect(model).provenance
