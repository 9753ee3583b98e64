"""Runs on instructions: any layout, the template that is said, and a tokenizer that speaks it afterwards."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from weft.data.text import IGNORED
from weft.errors import ConfigError, DataError
from weft.tasks import InstructRun
from weft.tasks.instruct import InstructTask
from weft.training import run
from weft.training.folder import RunFolder

Write = Callable[..., Path]

ALPACA = [{"instruction": f"Add {i}.", "input": "" if i % 2 else "1, 2", "output": str(i)} for i in range(8)]


@pytest.fixture
def mute_base(base: Path, tmp_path: Path) -> Path:
    """The tiny base without a chat template."""
    folder = tmp_path / "mute"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def opened(config: InstructRun) -> tuple[InstructTask, str]:
    """The task, and what it said."""
    console = Console(file=io.StringIO(), width=400)
    task = InstructTask.open(config, console)
    assert isinstance(console.file, io.StringIO)
    return task, console.file.getvalue()


def settings(base: Path, train: Path, tmp_path: Path, **more: Any) -> InstructRun:
    return InstructRun(base=str(base), train=str(train), output=tmp_path / "run", bf16=False, **more)


def texts(task: InstructTask) -> list[str]:
    decode = task.base.tokenizer.decode
    return [str(decode(task.train_data[i]["input_ids"])) for i in range(len(task.train_data))]


def test_the_bases_own_template_is_used_and_said(base: Path, write: Write, tmp_path: Path) -> None:
    task, said = opened(settings(base, write(ALPACA), tmp_path))
    assert "conversations are written with the base's own chat template" in said
    assert "data.jsonl: the layout is alpaca (instruction, output)" in said
    assert task.config.template == "chat"
    assert texts(task)[:2] == ["<user>Add 0.\n\n1, 2\n<assistant>0<eos>", "<user>Add 1.\n<assistant>1<eos>"]
    learned = [label for label in task.train_data[0]["labels"] if label != IGNORED]
    assert task.base.tokenizer.decode(learned) == "0<eos>"


def test_a_base_without_one_gets_wefts_plain_one(mute_base: Path, write: Write, tmp_path: Path) -> None:
    task, said = opened(settings(mute_base, write(ALPACA), tmp_path))
    assert "weft's plain template, which is saved beside the adapter (the base has none of its own)" in said
    assert texts(task)[1] == "### User:\nAdd 1.\n\n### Assistant:\n1<eos>"
    with pytest.raises(ConfigError, match=r"template: the base .*mute' has no chat template; set it to 'plain'"):
        opened(settings(mute_base, write(ALPACA), tmp_path, template="chat"))


def test_alpacas_prompt_can_be_asked_for(base: Path, write: Write, tmp_path: Path) -> None:
    task, said = opened(settings(base, write(ALPACA), tmp_path, template="alpaca"))
    assert "Stanford Alpaca's prompt" in said
    first, second = texts(task)[:2]
    assert first.endswith("### Instruction:\nAdd 0.\n\n### Input:\n1, 2\n\n### Response:0<eos>")
    assert second.endswith("completes the request.\n\n### Instruction:\nAdd 1.\n\n### Response:1<eos>")


def test_layouts_of_training_and_held_out_rows_may_differ_but_not_within_one(
    base: Path, write: Write, tmp_path: Path
) -> None:
    chat = write([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}], "b.jsonl")
    task, said = opened(settings(base, write(ALPACA), tmp_path, eval=str(chat)))
    assert task.eval_data is not None
    assert "b.jsonl: the layout is messages" in said
    mixed = write([*ALPACA, {"prompt": "x", "completion": "y"}], "mixed.jsonl")
    with pytest.raises(DataError, match=r"mixed.jsonl line 9: expected the layout alpaca.*found the layout prompt"):
        opened(settings(base, mixed, tmp_path))


def test_a_run_leaves_its_template_beside_the_adapter(base: Path, write: Write, tmp_path: Path) -> None:
    config = settings(
        base, write(ALPACA), tmp_path, template="plain", eval_share=0.25, max_steps=2, rank=2, generate_rows=2,
        max_new_tokens=4, tensorboard=False,
    )  # fmt: skip
    result = run(config)
    assert result.after is not None
    assert {"rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"} <= result.after.scores.keys()
    assert len(result.after.samples) == 2
    assert "weft generate" in RunFolder(result.folder).card.read_text()
    spoken = AutoTokenizer.from_pretrained(result.adapter).apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert spoken == "### User:\nx\n\n### Assistant:\n"


def test_the_bases_own_template_is_not_kept_twice(base: Path, write: Write, tmp_path: Path) -> None:
    task, _ = opened(settings(base, write(ALPACA), tmp_path))
    (tmp_path / "adapter").mkdir()
    task.save_beside(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())
