"""`AdapterTrainer` in two processes, as torchrun starts them."""

from pathlib import Path

import pytest
import torch
from tiny_llama import llama, token_ids
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments
from two_processes import in_two_processes

import weft
from weft.errors import TrainingError
from weft.training import AdapterTrainer
from weft.training.checkpoint import STATE_FILE, latest, trained_tensors


def trainer(folder: Path, steps: int, **settings: object) -> AdapterTrainer:
    torch.manual_seed(3)
    model = llama(torch.float32)
    weft.attach(model, weft.LoRAConfig(rank=2, dropout=0.1))
    rows = [{"input_ids": row, "labels": row} for row in token_ids(16)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, lr_scheduler_type="constant",
        save_strategy="steps", save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, ddp_backend="gloo",
        dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    return AdapterTrainer(model=model, args=arguments, train_dataset=rows)


def weights(made: AdapterTrainer) -> list[Tensor]:
    return [tensor.clone() for tensor in trained_tensors(made.attached).values()]


def _train_and_resume(folder: Path) -> None:
    first = trainer(folder, 2)
    start = weights(first)
    first.train()
    assert isinstance(first.model_wrapped, DistributedDataParallel)
    assert not first.model_wrapped.find_unused_parameters
    trained = weights(first)
    assert all(not torch.equal(a, b) for a, b in zip(start, trained, strict=True))
    for tensor in trained:  # one model, not two
        theirs = tensor.clone()
        distributed.broadcast(theirs, src=0)
        assert torch.equal(theirs, tensor)
    newest = latest(folder)
    assert newest is not None
    assert newest.name == "checkpoint-2"
    assert (newest / STATE_FILE).is_file()
    assert len(list(newest.glob("rng_state_*.pth"))) == 2

    again = trainer(folder, 2)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert all(torch.equal(a, b) for a, b in zip(trained, weights(again), strict=True))
    again.save_model(str(folder / "adapter"))
    distributed.barrier()
    saved, live = weft.load(folder / "adapter"), weft.collect(again.attached)
    assert all(torch.equal(saved.factors[path].B, value.B) for path, value in live.factors.items())


def test_two_processes_train_one_adapter_and_resume(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _train_and_resume, tmp_path / "out")


def _sharded(folder: Path) -> None:
    with pytest.raises(TrainingError, match="cannot write checkpoints of a model that it shards"):
        trainer(folder, 1, fsdp=True, fsdp_config={"version": 2}).train()


def test_sharding_by_the_trainer_is_refused(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _sharded, tmp_path / "out")
