"""A run that keeps the frozen blocks' output on disk is the run that computes it in every epoch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from run_folder import lines, same, weights
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import weft
from weft.data.text import Collator
from weft.errors import TrainingError
from weft.tasks import TextRun
from weft.training import RunConfig, load_text, run
from weft.training.frozen_blocks import FROZEN_STATES, FrozenBlocks
from weft.training.frozen_cache import frozen_cache
from weft.training.trainer import AdapterTrainer


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a base with four blocks."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=96, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(deep: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    """Two epochs, with dropout in the adapter."""
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"prompt": "so " * i, "completion": "what"}) + "\n" for i in range(1, 6)))
    return {
        "base": str(deep), "train": str(pairs), "eval": str(held), "output": tmp_path / "plain", "rank": 2,
        "layers": [2, 3], "dropout": 0.2, "learning_rate": 2e-2, "max_steps": 8, "batch_size": 5, "log_every": 2,
        "eval_every": 5, "save_every": 4, "tensorboard": False,
    }  # fmt: skip


def cached(settings: dict[str, Any], tmp_path: Path, **changes: Any) -> RunConfig:
    return TextRun(**(settings | {"output": tmp_path / "cached", "cache_frozen": True} | changes))


def test_rows_apart_give_the_same_run_to_the_last_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"batch_size": 1, "generate_rows": 2, "max_new_tokens": 4}
    plain = run(TextRun(**settings))
    for checkpointing in (False, True):
        found = run(cached(settings, tmp_path, gradient_checkpointing=checkpointing), overwrite=checkpointing)
        assert same(weights(plain.folder), weights(found.folder))
        assert lines(plain.folder) == lines(found.folder)
        assert (plain.before, plain.after) == (found.before, found.after)
        assert not (found.folder / "scratch").exists()


@pytest.mark.parametrize("batching", ["packed", "sorted"])
def test_larger_batches_give_the_same_run_within_rounding(
    settings: dict[str, Any], tmp_path: Path, batching: str
) -> None:
    settings |= {"batching": batching, "max_steps": 6, "eval_every": 3}
    plain, found = run(TextRun(**settings)), run(cached(settings, tmp_path))
    for expected, line in zip(lines(plain.folder), lines(found.folder), strict=True):
        for name in expected.keys() & {"loss", "eval_loss"}:
            assert line[name] == pytest.approx(expected[name], rel=1e-5)  # float32, products of other shapes


def test_a_base_in_bfloat16(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"bf16": True, "max_steps": 2}
    plain, found = run(TextRun(**settings)), run(cached(settings, tmp_path))
    assert plain.after is not None
    assert found.after is not None
    assert found.after.loss == pytest.approx(plain.after.loss, rel=2**-8)  # bfloat16


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Lets training fail at a step, or no longer."""
    step = AdapterTrainer.training_step

    def _fails_at(number: int | None) -> None:
        def failing(self: AdapterTrainer, *inputs: Any) -> torch.Tensor:
            if self.state.global_step + 1 == number:
                raise OSError(5, "Input/output error")
            return step(self, *inputs)

        monkeypatch.setattr(AdapterTrainer, "training_step", failing)

    return _fails_at


def test_a_resumed_run_reads_the_cache_again_and_is_the_run_uninterrupted(
    settings: dict[str, Any], tmp_path: Path, fails_at: Callable[[int | None], None]
) -> None:
    whole = run(cached(settings, tmp_path, output=tmp_path / "whole")).folder
    config = cached(settings, tmp_path)
    fails_at(7)
    with pytest.raises(TrainingError, match="last good checkpoint"):
        run(config)
    assert [path.suffix for path in (tmp_path / "cached" / "scratch").iterdir()] == [".bin"]
    fails_at(None)
    folder = run(config, resume=True).folder
    assert same(weights(folder), weights(whole))
    assert lines(folder) == lines(whole)


def test_a_run_that_fails_at_once_leaves_nothing(
    settings: dict[str, Any], tmp_path: Path, fails_at: Callable[[int | None], None]
) -> None:
    fails_at(1)
    with pytest.raises(TrainingError, match="Input/output error"):
        run(cached(settings, tmp_path))
    assert not (tmp_path / "cached").exists()


def test_a_disk_with_too_little_room_is_refused_beforehand(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(20_000))
    with pytest.raises(TrainingError, match=r"output of 2 frozen blocks for \d+ tokens takes 0\.0 MB, and 0\.0 MB"):
        run(cached(settings, tmp_path))
    assert not (tmp_path / "cached").exists()


# Without a run: what is kept, and when it is made anew.


def test_the_file_holds_each_rows_states_and_is_made_once(
    deep: Path, pairs: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LlamaForCausalLM.from_pretrained(deep)
    weft.attach(model, weft.LoRAConfig(rank=2, layers=(3,)))
    blocks, data = FrozenBlocks(model), load_text(pairs, tokenizer)
    first, second = data.split(0.4, seed=1)
    runs: list[int] = []
    attention = model.model.layers[0].self_attn
    assert isinstance(attention, nn.Module)
    attention.register_forward_hook(lambda *_: runs.append(1))

    def count() -> int:
        runs.clear()
        with frozen_cache(blocks, [first, second], Collator(1), tmp_path / "states", batch_size=4) as cache:
            made = len(runs)
            rows = [(cache.datasets[0], 3), (cache.datasets[1], 0), (cache.datasets[1], 7), (cache.datasets[0], 0)]
            items = [data[i] for data, i in rows]
            batch = cache.collator(Collator(1))(items)
            plain = Collator(1)([{"input_ids": item["input_ids"], "labels": item["labels"]} for item in items])
            assert all(torch.equal(batch[name], plain[name]) for name in plain)
            for item, states in zip(items, batch[FROZEN_STATES], strict=True):
                alone = blocks.states({"input_ids": torch.tensor([item["input_ids"]])})[0]
                assert torch.allclose(states[: len(alone)], alone, atol=1e-5)  # float32, another batch
                assert not states[len(alone) :].any()
        return made

    made = count()
    assert made > 5  # 20 rows in fours, and the check
    checked = count()
    assert checked == made - 5  # the file is there
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    assert count() == made  # another base
    assert len(list((tmp_path / "states").iterdir())) == 2
