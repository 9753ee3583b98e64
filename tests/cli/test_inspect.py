"""`weft inspect` beside a base, beside other adapters, over a run's folder, and as a report."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft

from .conftest import Made, Run


def document(run: Run, *words: object) -> dict:  # type: ignore[type-arg]
    result = run("inspect", *words, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict = json.loads(result.stdout)  # type: ignore[type-arg]
    return parsed


@pytest.fixture
def other(llama: Made, tmp_path: Path) -> Path:
    """An adapter for the same base with factors of its own."""
    factors = {
        path: weft.LowRank(torch.randn_like(D.B), torch.randn_like(D.A), D.scaling)
        for path, D in llama.adapter.factors.items()
    }
    return replace(llama.adapter, factors=factors).save(tmp_path / "other")


@pytest.mark.parametrize("name", ["llama", "gpt2", "classifier"])
def test_weights_of_the_base_are_those_that_the_factors_change(
    name: str, request: pytest.FixtureRequest, run: Run
) -> None:
    made: Made = request.getfixturevalue(name)
    found = document(run, made.adapter_path, "--base", made.base)["against_base"]
    assert {m["path"] for m in found} == made.adapter.factors.keys()
    model = made.model()
    before = {name: p.detach().float().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    weft.merge(weft.attach(model.float(), made.adapter), undo=None)
    weft.detach(model)
    for m in found:
        W = before[f"{m['path']}.weight"]
        delta = model.get_parameter(f"{m['path']}.weight").detach() - W  # as the layer lies, Conv1D transposed
        assert m["weight_norm"] == pytest.approx(float(W.norm()), rel=1e-4)
        assert m["relative_norm"] == pytest.approx(float(delta.norm() / W.norm()), rel=1e-3)
        U, S, Vh = torch.linalg.svd(delta)
        k = int(S.gt(1e-3 * S[0]).sum())
        assert m["projected_norm"] == pytest.approx(float((U[:, :k].T @ W @ Vh[:k].T).norm()), rel=1e-2)
        assert m["intruders"] is None


def test_intruders_are_counted(llama: Made, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (llama.adapter_path, "--base", llama.base, "--intruders", "--top", 4, "--epsilon", 0.7)
    weights = {n: p.detach().float() for n, p in llama.model().named_parameters()}
    for m in document(run, *words)["against_base"]:
        W, D = weights[f"{m['path']}.weight"], llama.adapter.factors[m["path"]].dense().float()
        base, changed = torch.linalg.svd(W, full_matrices=False).U, torch.linalg.svd(W + D).U[:, :4]
        cosines = (base.T @ changed).abs().amax(0)
        assert [c["low"] for c in m["intruders"]["cosines"]] == pytest.approx(cosines.tolist(), abs=1e-3)
        assert m["intruders"]["count"] == int((cosines < 0.7).sum())
        assert m["intruders"]["search"] == {"top": 4, "epsilon": 0.7}
    monkeypatch.setenv("COLUMNS", "160")
    assert "intruders" in run("inspect", *words).stdout


def test_several_adapters_are_compared(llama: Made, other: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"mine={llama.adapter_path}", other, f"again={llama.adapter_path}")
    found = document(run, *words, "--grids", "*.1.self_attn.q_proj")
    assert [d["path"] for d in found["others"]] == [str(other), str(llama.adapter_path)]
    overlap = found["overlap"]
    assert overlap["names"] == ["mine", "other", "again"]
    assert overlap["cosine"][0][2] == pytest.approx(1, abs=1e-5)
    assert overlap["inputs"][0][2] == pytest.approx(1, abs=1e-5)
    assert abs(overlap["cosine"][0][1]) < 0.5
    assert [(g["path"], g["second"]) for g in overlap["grids"]] == [
        ("model.layers.1.self_attn.q_proj", "other"),
        ("model.layers.1.self_attn.q_proj", "again"),
    ]
    monkeypatch.setenv("COLUMNS", "160")
    text = run("inspect", *words).stdout
    assert "mine and other" in text
    assert "mine and again" in text


def test_a_runs_folder_is_judged(llama: Made, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(llama.adapter_path, folder / "adapter")
    lines = [{"step": 100 * i, "eval_loss": loss} for i, loss in enumerate((4.0, 2.0, 2.5))]
    lines += [{"step": 10 * i, "loss": 2.4, "grad_norm": 0.9} for i in range(1, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("max_grad_norm: 0.5\nno_longer_known: 1\n")
    rules = {sign["rule"] for sign in document(run, folder)["signs"]}
    assert {"overfitting", "always clipped"} <= rules
    assert rules == {sign["rule"] for sign in document(run, folder / "adapter")["signs"]}
    text = " ".join(run("inspect", folder).stdout.split())
    assert "warning: Overfitting: the held-out loss was lowest at step 100 (2.000)" in text
    page = run("inspect", folder, "--report", tmp_path / "report.html")
    assert page.exit_code == 0, page.output
    assert f"wrote {tmp_path / 'report.html'}" in page.stdout
    assert "lowest at step 100" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text("a: [")
    assert "always clipped" not in {sign["rule"] for sign in document(run, folder)["signs"]}


def test_a_report_holds_everything(llama: Made, other: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    words = (llama.adapter_path, other, "--base", llama.base, "--intruders", "--report", path)
    result = run("inspect", *words, "--json")
    assert result.exit_code == 0, result.output
    html = path.read_text(encoding="utf-8")
    for m in json.loads(result.stdout)["modules"]:
        assert m["path"] in html
        assert f"{m['norm']:.3g}" in html
    for section in ("where", "spectra", "base", "likeness", "tables", "words"):
        assert f'<section id="{section}">' in html
    assert "<h1>run</h1>" in html


def test_what_cannot_be_done_leaves_nothing(
    llama: Made, wide_llama: Made, gpt2: Made, other: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "out" / "report.html"

    def refused(*words: object) -> str:
        message = fail("inspect", *words, "--report", path)
        assert not path.parent.exists()
        return message

    assert "have no module in common" in refused(llama.adapter_path, gpt2.adapter_path)
    assert "the change has shape" in refused(llama.adapter_path, wide_llama.adapter_path)
    assert "made for another base" in refused(llama.adapter_path, "--base", gpt2.base)
    assert "did not fit" in refused(llama.adapter_path, "--base", wide_llama.base, "--any-base")
    assert "name it with --base" in refused(llama.adapter_path, "--intruders")
    assert "epsilon is 2.0" in refused(llama.adapter_path, "--base", llama.base, "--intruders", "--epsilon", 2)
    assert "top is 0" in refused(llama.adapter_path, "--base", llama.base, "--intruders", "--top", 0)
    assert "did you mean 'q_proj'" in refused(llama.adapter_path, other, "--grids", "q_prj")
    assert "needs another adapter" in refused(llama.adapter_path, "--grids", "q_proj")
    assert "two are called 'a'" in refused(f"a={llama.adapter_path}", f"a={other}")

    weights = tmp_path / "other" / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "1 of the adapter's" in refused(other)


def test_reports_that_cannot_be_written(llama: Made, fail: Callable[..., str], tmp_path: Path) -> None:
    assert "is a folder; name a file" in fail("inspect", llama.adapter_path, "--report", tmp_path)
    (tmp_path / "file").write_text("")
    message = fail("inspect", llama.adapter_path, "--report", tmp_path / "file" / "report.html")
    assert f"{tmp_path / 'file'} is no folder" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
