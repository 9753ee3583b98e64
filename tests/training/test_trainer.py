"""AdapterTrainer, and the loops that know nothing of weft: torch's own, the plain Trainer, accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

import weft
from weft.data.text import Collator
from weft.errors import BaseMismatchError, BindingError, FormatError, StateError, TrainingError
from weft.training import AdapterTrainer, TextDataset, load_text
from weft.training.checked_trainer import EpochLengthSampler
from weft.training.checkpoint import latest, load_state, save_state, trained_tensors

CONFIG = weft.LoRAConfig(rank=2, dropout=0.1, init=weft.PiSSA())


@pytest.fixture
def data(pairs: Path, tokenizer: PreTrainedTokenizerFast) -> TextDataset:
    return load_text(pairs, tokenizer)


def arguments(tmp_path: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"), "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**(settings | changes))


def frozen(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def test_the_adapter_learns_and_the_base_stays(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    base, before = frozen(model), [p.detach().clone() for p in weft.trainable_parameters(model)]
    trainer = AdapterTrainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1))
    trainer.train()
    assert all(torch.equal(base[name], value) for name, value in frozen(model).items())
    assert all(not torch.equal(a, b) for a, b in zip(before, weft.trainable_parameters(model), strict=True))
    trainer.save_model(str(tmp_path / "saved"))
    saved, live = weft.load(tmp_path / "saved"), weft.collect(model)
    assert saved.factors.keys() == live.factors.keys()
    assert all(torch.equal(saved.factors[k].dense(), live.factors[k].dense()) for k in live.factors)


def test_a_checkpoint_holds_the_adapter_alone(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    AdapterTrainer(model=model, args=args, train_dataset=data, data_collator=Collator(1)).train()
    newest = latest(tmp_path / "out")
    assert newest is not None
    assert newest.name == "checkpoint-2"
    with safe_open(newest / "adapter_state.safetensors", "pt") as file:
        keys = set(file.keys())
    assert keys == set(trained_tensors(model))
    assert any(key.endswith("offset_A") for key in keys)
    assert {path.name for path in newest.iterdir()} == {
        "adapter_state.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"
    }  # fmt: skip


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_resuming_from_any_checkpoint_ends_in_the_same_weights(
    tmp_path: Path, base: Path, data: TextDataset, strategy: str
) -> None:
    """Eight steps of two batches, five to an epoch; from a checkpoint in the middle of one, and at its end."""

    def trainer() -> AdapterTrainer:
        torch.manual_seed(3)
        model = weft.attach(LlamaForCausalLM.from_pretrained(base), CONFIG)
        args = arguments(
            tmp_path, max_steps=8, gradient_accumulation_steps=2, save_strategy="steps", save_steps=1,
            train_sampling_strategy=strategy,
        )  # fmt: skip
        return AdapterTrainer(model=model, args=args, train_dataset=data, data_collator=Collator(1))

    def weights(made: AdapterTrainer) -> list[Tensor]:
        return [t.clone() for t in trained_tensors(made.attached).values()]

    whole = trainer()
    whole.train()
    expected = weights(whole)
    for step in (3, 5, 7, 8):
        again = trainer()
        output = again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert output.global_step == 8
        assert all(torch.equal(a, b) for a, b in zip(expected, weights(again), strict=True)), step


def test_half_a_checkpoint_is_none(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = AdapterTrainer(model=model, args=args, train_dataset=data, data_collator=Collator(1))
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    state = tmp_path / "out" / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:-20])
    newest = latest(tmp_path / "out")
    assert newest is not None
    assert newest.name == "checkpoint-1"


def test_a_state_is_read_back_whole_or_not_at_all(tmp_path: Path, base: Path, model: LlamaForCausalLM) -> None:
    weft.attach(model, CONFIG)
    save_state(model, tmp_path)
    other = weft.attach(LlamaForCausalLM.from_pretrained(base), weft.LoRAConfig(rank=3))
    before = [p.clone() for p in weft.trainable_parameters(other)]
    with pytest.raises(BindingError, match=r"found \(2, 16\) torch.float32, expected \(3, 16\)"):
        load_state(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, weft.trainable_parameters(other), strict=True))
    with torch.no_grad():
        foreign = LlamaForCausalLM.from_pretrained(base)
        for parameter in foreign.parameters():
            parameter.mul_(1.5)
    with pytest.raises(BaseMismatchError, match="made on another base"):
        load_state(weft.attach(foreign, CONFIG), tmp_path)
    (tmp_path / "adapter_state.safetensors").write_bytes(b"1234")
    with pytest.raises(FormatError, match="no checkpoint of an adapter"):
        load_state(model, tmp_path)


def test_training_nothing_is_an_error(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    def trainer() -> AdapterTrainer:
        return AdapterTrainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1))

    with pytest.raises(StateError, match="no adapter is attached"):
        trainer().train()
    weft.attach(model, CONFIG)
    weft.activate(model, None)
    with pytest.raises(TrainingError, match="no trainable adapter is active"):
        trainer().train()
    weft.activate(model, "default")
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="none of its parameters requires a gradient"):
        trainer().train()


def test_an_adapter_that_the_loss_does_not_reach_is_named(
    tmp_path: Path, model: LlamaForCausalLM, data: TextDataset
) -> None:
    weft.attach(model, CONFIG, name="idle")
    weft.attach(model, CONFIG, name="busy")
    trainer = AdapterTrainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1))
    with pytest.raises(TrainingError, match="no gradient in 14 modules") as raised:
        trainer.train()
    assert "model.layers.0.self_attn.q_proj (the adapter 'idle' is not active)\n" in str(raised.value)
    assert "and 6 more" in str(raised.value)


def test_a_magnitude_without_a_gradient_is_named(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, weft.LoRAConfig(rank=2, variant=weft.DoRA()))
    trainer = AdapterTrainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1))
    trainer.train()
    model.model.layers[0].self_attn.q_proj.adapters["default"].magnitude.requires_grad_(False).grad = None
    with pytest.raises(TrainingError, match=r"no gradient in 1 modules:\n  model\.layers\.0\.self_attn\.q_proj"):
        trainer.train()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    trainer = AdapterTrainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; lower the learning rate \(now 0.01\)"):
        trainer.train()


def test_the_order_of_rows_depends_on_seed_and_epoch_alone() -> None:
    lengths = [i % 7 for i in range(50)]
    sampler = EpochLengthSampler(lengths, 4, seed=1)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(EpochLengthSampler(lengths, 4, seed=1)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(first) == list(range(50))


# Loops that know nothing of weft.


def loader(data: TextDataset) -> DataLoader[Any]:
    return DataLoader(data, batch_size=5, collate_fn=Collator(1))  # type: ignore[arg-type]


def test_a_loop_of_ones_own(model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=2e-2)
    losses = []
    for batch in [*loader(data), *loader(data)]:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_accelerate(model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=2e-2)
    prepared, optimizer, batches = accelerator.prepare(model, optimizer, loader(data))
    losses = []
    for batch in [*batches, *batches]:
        loss = prepared(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert weft.collect(accelerator.unwrap_model(prepared)).num_parameters > 0


def test_the_plain_trainer(tmp_path: Path, model: LlamaForCausalLM, data: TextDataset) -> None:
    weft.attach(model, CONFIG)
    base, before = frozen(model), weft.collect(model)
    Trainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=Collator(1)).train()
    assert all(torch.equal(base[name], value) for name, value in frozen(model).items())
    after = weft.collect(model)
    assert all(not torch.equal(after.factors[k].dense(), before.factors[k].dense()) for k in before.factors)
