"""`weft combine` and `weft resize`: adapters from adapters, on the command line."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import weft
from weft.algebra import DareTies

from .conftest import Made, Run


@pytest.fixture
def two(llama: Made, tmp_path: Path) -> tuple[Path, Path]:
    """The adapter, and one of its negatives in part, both saved."""
    others = {path: value.T.T * -0.5 for path, value in llama.adapter.factors.items() if "q_proj" not in path}
    layouts = {path: llama.adapter.layouts[path] for path in others}
    other = replace(llama.adapter, factors=others, layouts=layouts)
    return llama.adapter_path, other.save(tmp_path / "other")


def test_combine_writes_the_weighted_sum(two: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    result = run("combine", *two, "--weights", "1,3", "--output", tmp_path / "made")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'made'}" in result.stdout
    a, b, made = (weft.load(path) for path in (*two, tmp_path / "made"))
    for path, value in a.factors.items():
        expected = value.dense(torch.float64) + (3 * b.factors[path].dense(torch.float64) if path in b.factors else 0)
        assert_close(made.factors[path].dense(torch.float64), expected, rtol=1e-5, atol=1e-6)
        assert made.factors[path].rank == value.rank, "b is a multiple of a: no direction is new"
    assert [each["weight"] for each in made.provenance["lineage"]["inputs"]] == [1, 3]


def test_combine_reports_what_a_rank_cost(two: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    command = ("combine", *two, "--method", "svd", "--rank", "2", "--dtype", "bfloat16", "-o", tmp_path / "made")
    report = json.loads(run(*command, "--json").stdout)
    a, b, made = (weft.load(path) for path in (*two, tmp_path / "made"))
    exact = weft.weighted_sum([a, b], [0.5, 0.5])
    assert report["relative_error"] == pytest.approx((exact - made).norm() / exact.norm(), rel=0.02)
    assert report["modules"].keys() == made.factors.keys()
    assert {value.dtype for value in made.factors.values()} == {torch.bfloat16}
    again = run(*command)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert run(*command, "--overwrite").exit_code == 0


def test_combine_passes_on_the_settings_of_a_method(two: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    command = ("combine", *two, "--method", "dare_ties", "--density", "0.7", "--seed", "5", "-o", tmp_path / "made")
    report = json.loads(run(*command, "--json").stdout)
    made = weft.load(tmp_path / "made")
    expected = weft.combine([weft.load(path) for path in two], DareTies(density=0.7, seed=5))
    assert (made - expected).norm() < 1e-5 * expected.norm()
    assert 0 < report["relative_error"] < 1
    assert made.provenance["lineage"]["method"] == {"name": "dare_ties", "density": 0.7, "seed": 5}


def test_resize_gives_each_module_its_rank(llama: Made, run: Run, tmp_path: Path) -> None:
    result = run("resize", llama.adapter_path, "--energy", "0.9", "--output", tmp_path / "small", "--json")
    report = json.loads(result.stdout)
    small = weft.load(tmp_path / "small")
    assert 0 < report["relative_error"] <= 0.1**0.5
    assert (llama.adapter - small).norm() == pytest.approx(report["relative_error"] * llama.adapter.norm(), rel=1e-3)
    assert report["parameters"] < llama.adapter.num_parameters
    shown = run("resize", llama.adapter_path, "--rank", "1", "--output", tmp_path / "one", "--modules")
    assert "1.mlp.down_proj" in shown.stdout


def test_files_are_written_in_the_dtype_that_went_in(llama: Made, run: Run, tmp_path: Path) -> None:
    half = {path: value.to(dtype=torch.bfloat16) for path, value in llama.adapter.factors.items()}
    replace(llama.adapter, factors=half).save(tmp_path / "half")
    made = {
        torch.bfloat16: ("resize", tmp_path / "half", "--rank", "1"),
        torch.float32: ("combine", tmp_path / "half", llama.adapter_path),
        torch.float16: ("resize", tmp_path / "half", "--rank", "1", "--dtype", "float16"),
    }
    for dtype, command in made.items():
        output = tmp_path / str(dtype)
        assert run(*command, "--output", output).exit_code == 0
        assert {value.dtype for value in weft.load(output).factors.values()} == {dtype}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "linaer"], "there is no merge method 'linaer'; did you mean 'linear'"),
        (["--weights", "1"], "weights: found 1 for 2 adapters"),
        (["--weights", "1,x"], "weights: expected numbers with commas between them, found '1,x'"),
        (["--weights", "1,nan"], "weights: expected finite numbers, found nan"),
        (["--rank", "99"], "rank: 99 is more than any module can have (8)"),
        (["--rank", "1", "--error", "0.1"], "exactly one of rank, energy and error"),
        (["--energy", "7"], "energy: expected a share"),
        (["--density", "0.5"], "method 'linear' has no setting 'density'"),
        (["--method", "ties", "--seed", "1"], "method 'ties' has no setting 'seed'"),
        (["--method", "ties", "--density", "20"], "density: expected the share of entries to keep"),
    ],
)
def test_a_bad_setting_writes_nothing(
    words: list[str], message: str, two: tuple[Path, Path], fail: Callable[..., str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert message in fail("combine", *two, *words, "--output", tmp_path / "made")
    assert sorted(tmp_path.rglob("*")) == before


def test_adapters_that_do_not_fit_are_named(
    llama: Made, wide_llama: Made, gpt2: Made, classifier: Made, fail: Callable[..., str], tmp_path: Path
) -> None:
    out = ("--output", tmp_path / "made")
    assert "adapter 1 changes no module that another changes" in fail(
        "combine", llama.adapter_path, f"g={gpt2.adapter_path}", *out
    )
    assert "different bases" in fail("combine", llama.adapter_path, f"w={wide_llama.adapter_path}", *out)
    shapes = fail("combine", llama.adapter_path, f"w={wide_llama.adapter_path}", "--any-base", *out)
    assert "down_proj has different shapes: linear 32 x 64 in adapter 1, linear 48 x 64 in adapter 2" in shapes
    heads = ("combine", classifier.adapter_path, f"again={classifier.adapter_path}", "--weights", "1,1", *out)
    assert "was trained whole" in fail(*heads)
    assert "no such file or folder" in fail("combine", tmp_path / "nowhere", llama.adapter_path, *out)
    assert not (tmp_path / "made").exists()


def test_factors_only_leaves_out_what_was_trained_whole(classifier: Made, run: Run, tmp_path: Path) -> None:
    result = run(
        "combine", classifier.adapter_path, f"again={classifier.adapter_path}", "--weights", "1,1", "--factors-only",
        "--output", tmp_path / "made",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = weft.load(tmp_path / "made")
    assert not made.tensors
    assert made.norm() == pytest.approx(2 * classifier.adapter.norm(), rel=1e-3)


def test_nothing_is_written_when_the_disk_is_full(
    two: tuple[Path, Path], fail: Callable[..., str], tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        message = fail("combine", *two, "--output", tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "cannot write" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
