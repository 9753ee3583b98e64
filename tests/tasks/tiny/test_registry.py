"""Stand-ins are made once, always the same, and are what a real base and real data are."""

import shutil
from pathlib import Path

import pytest
import torch

from weft.data.text import load_text
from weft.errors import ConfigError
from weft.tasks.tiny import bases, build, data
from weft.tasks.tiny.registry import cache_place
from weft.training.base import load_base


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_stand_in_is_made_once_and_always_the_same() -> None:
    state = torch.get_rng_state()
    folder = Path(build(bases, "llama")["base"])
    assert torch.equal(torch.get_rng_state(), state)
    weights = folder / "model.safetensors"
    made, first = weights.stat().st_mtime_ns, weights.read_bytes()
    assert build(bases, "llama")["base"] == str(folder)
    assert weights.stat().st_mtime_ns == made
    shutil.rmtree(cache_place())
    torch.manual_seed(5)
    assert Path(build(bases, "llama")["base"], "model.safetensors").read_bytes() == first


def test_a_language_model_loads_with_its_tokenizer_and_takes_the_text() -> None:
    base = load_base(build(bases, "llama")["base"])
    files = build(data, "text")
    train = load_text(files["train"], base.tokenizer)
    assert train.report.rows == 10
    assert base.tokenizer.decode(train.examples[0].input_ids) == "<s>1 is one</s>"
    assert load_text(files["eval"], base.tokenizer).report.rows == 5


def test_a_value_is_kept_as_it_is() -> None:
    assert build(bases, "bundled") == {"base": "bundled"}


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no stand-in for a base 'lama'; did you mean 'llama'\?"):
        build(bases, "lama")


def test_one_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    @data.register("test_broken")
    def test_broken(folder: Path) -> dict[str, str]:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build(data, "test_broken")
    assert not list(cache_place().iterdir())
