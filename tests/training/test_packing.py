"""Packed batches: each row attends to itself alone, and loss and gradients are those of the padded batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

import weft
from tests.families import FAMILIES, GEMMA, LLAMA
from weft.data.packed import PackedCollator
from weft.data.text import Collator
from weft.errors import TrainingError
from weft.training import AdapterTrainer, TextDataset, load_text
from weft.training.packing import obstacle, packing

LENGTHS = (9, 3, 14, 6)

WINDOWED: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral, a window of 4": lambda: t.MistralForCausalLM(t.MistralConfig(**LLAMA, sliding_window=4)),
    "gemma3, windows of 4 and full": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**GEMMA | {"num_hidden_layers": 6}, query_pre_attn_scalar=8, sliding_window=4)
    ),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**LLAMA, logits_scaling=2.0)),
}
PACKABLE = {"llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt"}
MODELS = {family.name: family.base for family in FAMILIES if family.name in PACKABLE} | WINDOWED


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of random ids, the first half of each not learned."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 30, (length,), generator=draw).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in ids]


def adapted(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model in float64 with an adapter that does something."""
    torch.manual_seed(0)
    model = weft.attach(make().double().eval(), weft.LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter.normal_(std=0.3)
    return model


def loss_and_gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    loss = model(**batch, use_cache=False).loss
    return loss.detach(), list(torch.autograd.grad(loss, list(weft.trainable_parameters(model))))


def test_layout() -> None:
    batch = PackedCollator()(
        [{"input_ids": [5, 6, 7], "labels": [5, -100, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9]]
    assert batch["attention_mask"].tolist() == [[[[0, 3, 5]]]]


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_padded_batch(name: str) -> None:
    model = adapted(MODELS[name])
    assert obstacle(model, max(LENGTHS)) is None
    expected, theirs = loss_and_gradients(model, Collator(0)(rows()))
    with packing(model):
        found, mine = loss_and_gradients(model, PackedCollator()(rows()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # transformers takes the loss in float32
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)  # and the norms of some families


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral, a window of 4"])
def test_no_row_sees_another(name: str) -> None:
    model = adapted(MODELS[name])
    first, second = rows(), rows(seed=1)
    mixed = [first[0], *second[1:3], first[3]]
    with packing(model), torch.no_grad():
        one, two = (model(**PackedCollator()(batch), use_cache=False).logits for batch in (first, mixed))
    assert torch.equal(one[:, :9], two[:, :9])
    assert torch.equal(one[:, -6:], two[:, -6:])
    assert not torch.equal(one[:, 9:-6], two[:, 9:-6])


def test_checkpointing_gives_the_same_gradients() -> None:
    model = adapted(MODELS["mistral, a window of 4"])
    batch = PackedCollator()(rows())
    model.train()
    with packing(model):
        expected, theirs = loss_and_gradients(model, batch)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found, mine = loss_and_gradients(model, batch)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_other_batches_are_computed_as_ever() -> None:
    model = adapted(MODELS["llama"])
    batch = Collator(0)(rows())
    expected = model(**batch).logits
    prompt = torch.tensor([rows()[0]["input_ids"]])
    answer = model.generate(prompt, max_new_tokens=5, do_sample=False)
    with packing(model):
        assert torch.equal(model(**batch).logits, expected)
        assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False), answer)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="attn_mask dtype"):  # what would ignore the rows' ends refuses them
        model(**PackedCollator()(rows()))


REFUSED: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "alibi": (next(family.base for family in FAMILIES if family.name == "bloom"), "takes no position_ids"),
    "encoder-decoder": (next(family.base for family in FAMILIES if family.name == "t5"), "no causal language model"),
    "not of transformers": (lambda: torch.nn.Linear(2, 2), "no causal language model"),
    "sees what comes after": (
        lambda: t.BertLMHeadModel(t.BertConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                               num_attention_heads=2, vocab_size=32)),
        "would see each other",
    ),
    "a state": (
        lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2)), "position_ids"
    ),
    "linear attention": (
        lambda: t.Qwen3NextForCausalLM(t.Qwen3NextConfig(**LLAMA, num_experts=4, num_experts_per_tok=2)),
        "linear_attention",
    ),
    "eager attention": (lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GEMMA)), "'eager', not 'sdpa'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_take_them(name: str) -> None:
    make, reason = REFUSED[name]
    model = make()
    assert reason in str(obstacle(model, 20))
    assert not isinstance(model, PreTrainedModel) or model.config._attn_implementation != "sdpa_packed"


@pytest.fixture
def data(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> TextDataset:
    return load_text(pairs, tokenizer)


def trained(model: PreTrainedModel, tmp_path: Path, data: TextDataset, **options: Any) -> AdapterTrainer:
    weft.attach(model, weft.LoRAConfig(rank=2))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2,
        logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = AdapterTrainer(model=model, args=arguments, train_dataset=data, **options)
    torch.manual_seed(5)
    trainer.train()
    return trainer


def test_a_run_on_packed_batches_is_that_on_padded_ones(base: Path, tmp_path: Path, data: TextDataset) -> None:
    torch.manual_seed(1)
    runs = []
    for collator in (PackedCollator(), Collator(1)):
        torch.manual_seed(1)
        model = LlamaForCausalLM.from_pretrained(base)
        runs.append(trained(model, tmp_path, data, data_collator=collator))
    losses = [[line["loss"] for line in run.state.log_history if "loss" in line] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 3
    assert runs[0].attached.config._attn_implementation == "sdpa"


def test_a_model_that_cannot_take_them_is_not_trained_on_them(tmp_path: Path, data: TextDataset) -> None:
    with pytest.raises(TrainingError, match="cannot take packed batches: it takes no position_ids; use"):
        trained(FAMILIES[12].base(), tmp_path, data, data_collator=PackedCollator())
