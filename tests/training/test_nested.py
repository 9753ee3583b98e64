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
from weft.model.prefix import NESTED, factors_of, prefix
from weft.tasks import TextRun
from weft.training import AdapterTrainer, TextDataset, load_text, run
from weft.training.checkpoint import trained_tensors
from weft.training.nested import Nesting, powers_of_two, sort

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
    drawn = [nesting.rank_at(step, 1200) for step in range(1200)]
    assert drawn[:600] == [None] * 600  # the whole
    assert drawn[601::2] == [8] * 300
    lower = drawn[600::2]
    assert all(sorted(lower[start : start + 3]) == [1, 2, 4] for start in range(0, 300, 3))  # type: ignore[type-var]
    assert min(Counter(pairwise(lower)).values()) > 5  # in no fixed order
    torch.manual_seed(77)
    again = Nesting(model, seed=3)
    assert [again.rank_at(step, 1200) for step in (1198, 600, 614)] == [lower[step] for step in (299, 0, 7)]
    assert [Nesting(model, seed=4).rank_at(step, 1200) for step in range(600, 1200, 2)] != lower


def test_sorting_leaves_the_change_and_makes_its_prefixes_the_truncated_svd() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Linear(7, 3)).double()
    weft.attach(model, weft.LoRAConfig(rank=3, targets=["0", "1"]))
    first, untrained = factors_of(model)
    torch.nn.init.normal_(first.lora_B)
    before, start = weft.collect(model), untrained.lora_A.detach().clone()
    sort([first, untrained, first])
    after = weft.collect(model)
    assert torch.allclose(after.factors["0"].dense(), before.factors["0"].dense())
    for rank in (1, 2):
        with prefix([first], rank):
            expected = before.factors["0"].truncate(rank=rank).value
            assert torch.allclose(first.low_rank().dense(), expected.dense())
    assert not untrained.lora_B.any()
    assert torch.linalg.matrix_rank(torch.cat([untrained.lora_A, start])) == 3  # it still learns, in the same space
    assert torch.allclose(untrained.lora_A.norm(), start.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("collator", [Collator(1), PackedCollator()], ids=["padded", "packed"])
def test_a_step_trains_one_prefix_and_leaves_the_rest(
    model: LlamaForCausalLM, data: TextDataset, tmp_path: Path, collator: Any, checkpointing: bool
) -> None:
    weft.attach(model, CONFIG)
    seed = next(seed for seed in range(99) if Nesting(model, seed).rank_at(0, 1) == 4)
    trainer(
        model, data, tmp_path, collator, max_steps=1, seed=seed, gradient_accumulation_steps=2,
        activation_checkpointing=checkpointing, activation_checkpointing_kwargs={"use_reentrant": False},
    ).train()  # fmt: skip
    for factors in factors_of(model):
        assert factors.lora_B[:, :4].any(0).all()  # every column of the prefix
        assert not factors.lora_B[:, 4:].any()


def test_the_batches_of_a_step_share_its_rank(model: LlamaForCausalLM, data: TextDataset, tmp_path: Path) -> None:
    weft.attach(model, CONFIG)
    seen: list[set[int | None]] = []

    def note(body: LlamaModel, inputs: object) -> None:
        if body.training:
            seen.append({factors.prefix for factors in factors_of(model)})

    model.model.register_forward_pre_hook(note)
    made = trainer(model, data, tmp_path, gradient_accumulation_steps=2, max_steps=5)
    made.train()
    assert seen == [{Nesting(model, made.args.seed).rank_at(step, 5)} for step in range(5) for _ in range(2)]
    assert {None} in seen
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
    for step in (3, 4, 5, 8):  # sorted in step 4
        again = made()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True)), step
        assert weft.collect(again.attached).provenance[NESTED] == [1, 2, 4, 8]


def test_only_weights_of_the_second_half_are_called_nested(
    model: LlamaForCausalLM, data: TextDataset, tmp_path: Path
) -> None:
    """The best ones may be those of the first half: they are plain."""
    weft.attach(model, CONFIG)
    made = trainer(model, data, tmp_path, max_steps=6, save_strategy="steps", save_steps=1)
    made.train()
    for step, nested in ((2, False), (4, True), (3, False), (6, True)):
        made.state.best_global_step = step
        made.load_best()
        assert (NESTED in weft.collect(model).provenance) == nested


def test_a_run_says_that_it_was_nested_and_leaves_plain_lora(pairs: Path, base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rank": 4, "max_steps": 3, "learning_rate": 1e-2, "tensorboard": False}
    result = run(
        TextRun(base=str(base), train=str(pairs), eval=str(pairs), output=tmp_path / "run", nested=True, **settings)
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
