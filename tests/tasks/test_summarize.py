"""Runs on summaries, by decoders and encoder-decoders: what is read, what is learned, and what is measured."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import weft
from weft.errors import ConfigError
from weft.formats import load
from weft.tasks import SummarizeRun
from weft.tasks.language.generation import Decoding, generate_texts
from weft.tasks.summarize import SummarizeTask
from weft.tasks.tiny import bases, build, data
from weft.training import load_base, run
from weft.training.folder import RunFolder

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The settings of a run on a tiny base."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def _tiny(name: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", cache)
            files = build(bases, name) | build(data, "summarize")
        few = {"batch_size": 4, "max_steps": 2, "eval_every": 1, "rank": 2, "generate_rows": 2, "max_new_tokens": 5}
        return {**files, **few, "bf16": False, "tensorboard": False}

    return _tiny


def opened(config: SummarizeRun) -> tuple[SummarizeTask, str]:
    """The task, and what it said."""
    console = Console(file=io.StringIO(), width=400)
    task = SummarizeTask.open(config, console)
    assert isinstance(console.file, io.StringIO)
    return task, console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t5", "summarize: Ann: How many are there?\nBob: Just one.\nAnn: Only one!</s>"),
        ("bart", "<s>Ann: How many are there?\nBob: Just one.\nAnn: Only one!</s>"),
        (
            "llama",
            "<s>Summarize the following text.\n\nAnn: How many are there?\nBob: Just one.\nAnn: Only one!\n\n"
            "Summary:\nBob has one.</s>",
        ),
    ],
)
def test_what_a_base_is_asked_with_suits_it_and_is_said(tiny: Any, tmp_path: Path, name: str, read: str) -> None:
    task, said = opened(SummarizeRun(**tiny(name), output=tmp_path / "run"))
    assert f"prompt_template: {task.config.prompt_template!r}" in said
    assert task.base.tokenizer.decode(task.train_data[0]["input_ids"]) == read
    assert (task.train_report.rows, task.eval_report and task.eval_report.rows) == (10, 8)
    own, _ = opened(SummarizeRun(**tiny(name), output=tmp_path / "run", prompt_template="TLDR {input}"))
    assert "TLDR Ann: How" in str(own.base.tokenizer.decode(own.train_data[0]["input_ids"]))


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_run_trains_measures_and_shows_answers(tiny: Any, tmp_path: Path, name: str) -> None:
    settings = tiny(name)
    result = run(SummarizeRun(**settings, output=tmp_path / "run", learning_rate=1e-2))
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss
    assert {"rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"} <= result.after.scores.keys()
    folder = RunFolder(result.folder)
    assert len([line for line in folder.lines() if "eval_rouge_1" in line]) == 4  # before, twice within, and at the end
    assert result.after.samples[0].references == ("Bob has one.", "There are one.")
    card = folder.card.read_text()
    assert "Bob has one." in card
    assert ("generate_texts" in card) == (name != "llama")

    base = load_base(settings["base"], encoder_decoders=True)
    weft.attach(base.model, load(result.adapter))
    sample = result.after.samples[0]
    prompt = base.tokenizer(sample.input)["input_ids"]
    assert generate_texts(base.model, base.tokenizer, [prompt], Decoding(5)) == [sample.answer]


def test_a_task_without_encoder_decoders_says_which_has_them(tiny: Any) -> None:
    for name in ("t5", "bart"):
        with pytest.raises(ConfigError, match=rf"is an encoder-decoder \({name}\).*the task 'summarize' takes both"):
            load_base(tiny(name)["base"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "Sum up!"}, r"prompt_template: expected \{input\} somewhere in it, found 'Sum up!'"),
        ({"cache_frozen": True}, "cache_frozen: it takes decoders, and the base is an encoder-decoder"),
        ({"batching": "packed"}, "batching: this base cannot take packed batches: it is an encoder-decoder"),
        ({"base": "bart", "max_length": 2000}, r"max_length: 2000 tokens are more than .* context holds \(1024\)"),
    ],
)
def test_settings_that_cannot_be_are_named(tiny: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    files = tiny(change.pop("base", "t5"))
    with pytest.raises(ConfigError, match=message):
        opened(SummarizeRun(**(files | change), output=tmp_path / "run"))


def test_a_t5_may_read_more_than_it_was_trained_on(tiny: Any, tmp_path: Path) -> None:
    task, _ = opened(SummarizeRun(**tiny("t5"), output=tmp_path / "run", max_length=2000))
    assert task.config.max_length == 2000


def test_several_columns_are_several_references(tiny: Any, write: Write, tmp_path: Path) -> None:
    rows = [{"article": "x", "first": "a", "second": "b"}, {"article": "y", "first": "c", "second": "d"}]
    changes = {
        "train": str(write(rows)),
        "eval": None,
        "input_column": "article",
        "summary_column": ("first", "second"),
    }
    task, _ = opened(SummarizeRun(**(tiny("t5") | changes), output=tmp_path / "run"))
    assert task.train_report.rows == 4
