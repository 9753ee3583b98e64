"""``--tiny`` changes what has to be changed, and nothing else."""

from pathlib import Path

import pytest

from weft.errors import ConfigError
from weft.tasks import TextRun
from weft.tasks.tiny import tiny_run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_run_stays_but_for_base_data_and_sizes() -> None:
    run = TextRun(
        base="big/base", train="big/data", eval="big/more", output="runs/x", rank=64, rank_pattern={"q_proj": 2},
        prompt_column="question", batch_size=1, learning_rate=3e-3, targets=("q_proj",), eval_split="validation",
    )  # fmt: skip
    tiny = tiny_run(run)
    changed = {name for name in TextRun.model_fields if getattr(tiny, name) != getattr(run, name)}
    assert changed == {
        "base", "train", "eval", "output", "rank", "prompt_column", "eval_split", "max_steps", "log_every",
        "eval_every", "save_every", "max_new_tokens",
    }  # fmt: skip
    assert tiny.output == Path("runs/x-tiny")
    assert (tiny.rank, tiny.batch_size, tiny.max_steps) == (4, 1, 2)
    assert all(Path(path).exists() for path in (tiny.base, tiny.train, tiny.eval))
    assert tiny_run(run) == tiny


def test_nothing_is_held_out_that_was_not() -> None:
    run = TextRun(train="big/data", eval_share=0.2, output="x")
    assert (tiny_run(run).eval, tiny_run(run).eval_share) == (None, 0.2)


def test_an_unknown_stand_in_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no stand-in for a base 'mistrl'; did you mean 'mistral'"):
        tiny_run(TextRun(train="x", output="y", stand_in="mistrl"))
