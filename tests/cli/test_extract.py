"""`weft extract`: what it writes, what it says, and that it writes nothing when it fails."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import weft

from .conftest import Made, Run

Fail = Callable[..., str]


@pytest.fixture(scope="module")
def tuned(llama: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bfloat16 base with its adapter of ranks 2 and 4 merged in, and its last norm changed, in float32."""
    model = llama.model().float()
    weft.attach(model, llama.adapter, any_base=True)
    weft.merge(model, undo=None)
    weft.detach(model)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    folder = tmp_path_factory.mktemp("extract") / "tuned"
    model.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@contextmanager
def nothing_written(output: Path) -> Iterator[None]:
    """Asserts that what is around the output's place is as it was."""
    before = sorted(output.parent.rglob("*"))
    yield
    assert sorted(output.parent.rglob("*")) == before


def test_the_adapter_that_was_merged_comes_out_again(llama: Made, tuned: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    result = run("extract", llama.base, tuned, "--error", 1e-4, "--vectors", "-o", output, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    adapter = weft.load(output)
    assert {path: value.rank for path, value in adapter.factors.items()} == {
        path: value.rank for path, value in llama.adapter.factors.items()
    }
    for path, value in llama.adapter.factors.items():
        assert (adapter.factors[path] - value).norm() < 1e-4 * value.norm()
        assert report["modules"][path]["rank"] == value.rank
        assert report["modules"][path]["norm"] == pytest.approx(float(value.norm()), rel=1e-3)
    assert list(report["carried"]) == list(adapter.tensors) == ["model.norm.weight"]
    assert report["left_out"] == {}
    assert report["relative_error"] < 1e-4
    assert report["parameters"] == adapter.num_parameters
    assert report["lineage"] == adapter.provenance["lineage"]
    assert report["lineage"]["operation"] == "extract"
    assert report["lineage"]["limit"] == {"error": 1e-4}
    assert report["lineage"]["inputs"] == [{"name": str(tuned)}]

    # Its base is known, and the files with the adapter merged in are the fine-tuned ones.
    assert run("merge", llama.base, output, "-o", tmp_path / "merged", "--dtype", "float32").exit_code == 0
    expected = tensors(tuned)
    for key, tensor in tensors(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)


def test_the_table_says_what_is_kept_and_what_is_left_out(llama: Made, tuned: Path, run: Run, tmp_path: Path) -> None:
    result = run("extract", llama.base, tuned, "--rank", 2, "-o", tmp_path / "a", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "under model.layers.*: modules count rank change error largest error energy" in text
    assert "self_attn.q_proj 2 2 " in text
    assert "left out: a vector, which vectors=True (--vectors) carries count change model.norm.weight 1 " in text
    assert "of the change's energy is left out, in 1 tensors" in text
    assert "half precision" not in text  # the fine-tuned files are float32
    assert {value.dtype for value in weft.load(tmp_path / "a").factors.values()} == {torch.bfloat16}
    result = run("extract", llama.base, tuned, "--rank", 2, "-o", tmp_path / "b", "--modules", "--targets", "q_proj")
    assert "0.self_attn.q_proj" in result.stdout
    assert "not among the targets" in result.stdout


def test_half_precision_is_told_of(llama: Made, run: Run, tmp_path: Path) -> None:
    model = llama.model()
    weft.attach(model, llama.adapter)
    weft.merge(model, undo=None)
    weft.detach(model)
    model.save_pretrained(tmp_path / "tuned")
    result = run("extract", llama.base, tmp_path / "tuned", "--rank", 4, "-o", tmp_path / "adapter")
    assert "of the change's norm is the rounding of the files' half precision" in result.stdout


def test_failures_write_nothing(llama: Made, wide_llama: Made, tuned: Path, fail: Fail, tmp_path: Path) -> None:
    output = tmp_path / "out" / "adapter"
    output.parent.mkdir()
    with nothing_written(output):
        assert "exactly one of rank, energy and error; found none" in fail("extract", llama.base, tuned, "-o", output)
        message = fail("extract", llama.base, tuned, "--rank", 2, "--energy", 0.5, "-o", output)
        assert "found rank and energy" in message
        message = fail("extract", llama.base, llama.base, "--rank", 2, "-o", output)
        assert "do not differ" in message
        message = fail("extract", llama.base, wide_llama.base, "--rank", 2, "-o", output)
        assert "not of the base's architecture" in message
        assert "and 9 more" in message
        message = fail("extract", llama.base, tuned, "--rank", 33, "-o", output)
        assert "rank: 33 is more than any of the modules can have (32)" in message
        message = fail("extract", llama.base, tuned, "--rank", 2, "--targets", "nothing", "-o", output)
        assert "targets: 'nothing' matches nothing" in message
        message = fail("extract", llama.base, tmp_path / "missing", "--rank", 2, "-o", output)
        assert f"finetuned: there is no folder {tmp_path / 'missing'}" in message
        for folder in (llama.base, tuned):
            assert "is, or holds" in fail("extract", llama.base, tuned, "--rank", 2, "-o", folder, "--overwrite")


def test_an_output_in_use_is_replaced_only_when_asked(
    llama: Made, tuned: Path, run: Run, fail: Fail, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    shutil.copytree(llama.adapter_path, output)
    with nothing_written(output):
        assert "is not empty" in fail("extract", llama.base, tuned, "--rank", 1, "-o", output)
    assert run("extract", llama.base, tuned, "--rank", 1, "-o", output, "--overwrite").exit_code == 0
    assert weft.load(output).config.rank == 1


def test_a_full_disk_leaves_nothing(llama: Made, tuned: Path, fail: Fail, tmp_path: Path) -> None:
    output = tmp_path / "out" / "adapter"
    output.parent.mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # files may not grow beyond this: a small disk
    try:
        with nothing_written(output):
            assert f"cannot write to {output}" in fail("extract", llama.base, tuned, "--rank", 2, "-o", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
