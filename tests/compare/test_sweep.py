"""Which rates are tried, and what the results say; jobs are done by a formula."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from weft.compare import compare
from weft.compare.estimate import Estimate
from weft.compare.job import About, Found, Job
from weft.compare.methods import Candidate, methods
from weft.compare.results import Results
from weft.compare.verdict import remarks, sentences, verdict
from weft.errors import ConfigError, FormatError
from weft.tasks import TextRun
from weft.training.config import RunConfig

ACCURACY = {"key": "accuracy", "title": "accuracy", "form": "{:.3f}", "greater_is_better": True}
LOSS = {"key": "loss", "title": "loss", "form": "{:.3f}", "greater_is_better": False}


def formula(accuracy: Callable[[RunConfig], float | None], base: float = 0.1) -> Callable[[Job, Path], Found]:
    """A runner whose runs reach what a formula of their settings says; None diverges."""

    def run(job: Job, scratch: Path) -> Found:
        if job.kind == "base":
            about = About([LOSS, ACCURACY], "accuracy", 100, 10, None, {"processor": "abacus"})
            return Found({"loss": 1 - base, "accuracy": base}, about=about)
        reached = accuracy(job.config)
        if reached is None:
            return Found(failed="the loss is nan at step 3")
        size = 10_000 if job.kind == "full" else 10 * job.config.rank
        scores = {"loss": 1 - reached, "accuracy": reached}
        return Found(
            scores, trainable=size, share=size / 10_000, checkpoint_bytes=4 * size, peak_bytes=9 * size,
            seconds_per_step=0.1, steps=7,
        )  # fmt: skip

    return run


@pytest.fixture
def config(tmp_path: Path) -> TextRun:
    return TextRun(train="train.jsonl", eval="eval.jsonl", output=tmp_path / "unused", learning_rate=1e-3, seed=0)


def peak_at(best: float) -> Callable[[RunConfig], float]:
    """An accuracy that is best at one learning rate."""
    return lambda config: 0.9 - 0.1 * abs(math.log10(config.learning_rate / best)) - 0.001 * config.seed


@pytest.mark.parametrize(
    ("best", "tried", "at_end"),
    [
        (1e-3, [3.2e-4, 1e-3, 3.2e-3], False),
        (4e-3, [3.2e-4, 1e-3, 3.2e-3, 1e-2], False),
        (1e-1, [3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2], True),
        (1e-4, [1e-4, 3.2e-4, 1e-3, 3.2e-3, 3.2e-5], False),
    ],
)
def test_a_sweep_goes_on_beyond_an_end_that_is_best(
    config: TextRun, tmp_path: Path, best: float, tried: list[float], at_end: bool
) -> None:
    found = compare(config, ["lora"], output=tmp_path / "out", runner=formula(peak_at(best)))
    sweep = found.sweeps[0]
    assert list(sweep.tried) == pytest.approx(sorted(tried), rel=0.05)
    assert sweep.rate == min(sweep.tried, key=lambda rate: abs(math.log10(rate / best)))
    assert sweep.is_at_end is at_end
    assert [run.eval["accuracy"] for run in sweep.runs] == pytest.approx(
        [sweep.runs[0].eval["accuracy"] - 0.001 * seed for seed in range(3)]
    )


def test_each_method_starts_at_its_own_usual_rate(config: TextRun, tmp_path: Path) -> None:
    found = compare(
        config, ["full", "lora", "prefix"], output=tmp_path / "out", seeds=1,
        runner=formula(lambda config: 0.5 - abs(math.log10(config.learning_rate))),
        rates={"prefix": [0.5, 0.1]},
    )  # fmt: skip
    full, lora, prefix = (sorted(sweep.tried) for sweep in found.sweeps)
    assert full[:3] == pytest.approx([3.2e-5, 1e-4, 3.2e-4], rel=0.02)
    assert lora[:3] == pytest.approx([3.2e-4, 1e-3, 3.2e-3], rel=0.02)
    assert prefix == [0.1, 0.5]  # those that are given, and no more


def test_a_rate_that_diverges_is_not_chosen(config: TextRun, tmp_path: Path) -> None:
    runner = formula(lambda config: None if config.learning_rate > 5e-4 else 0.5)
    comparison = compare(config, ["lora"], output=tmp_path / "out", rates={"": [1e-4, 1e-3]}, runner=runner)
    assert comparison.sweeps[0].rate == 1e-4
    found = Results.of(comparison)
    assert found.methods[1].sweep == {1e-4: 0.5, 1e-3: None}
    assert "lora@16: the loss is nan at step 3" in remarks(found)


def test_runs_that_failed_are_tried_again(config: TextRun, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": tmp_path / "out", "rates": {"": [1e-3]}}
    first = compare(config, ["lora"], **settings, runner=formula(lambda _: None))
    assert Results.of(first).methods[1].scores == {}
    assert sentences(Results.of(first)) == ["No method came to a result."]
    second = compare(config, ["lora"], **settings, resume=True, runner=formula(lambda _: 0.5))
    assert Results.of(second).methods[1].scores["accuracy"].values == (0.5, 0.5, 0.5)


def said(config: TextRun, output: Path, reached: Mapping[str, float], base: float = 0.1, seeds: int = 3) -> Results:
    """The results where a method reaches so much, and the seeds 0.01 to each side of it."""

    def accuracy(run: RunConfig) -> float:
        name = "full" if run.rank == 16 else f"lora@{run.rank}"
        return reached[name] + 0.01 * (run.seed - 1)

    comparison = compare(
        config, list(reached), output=output, seeds=seeds, rates={"": [1e-3]}, runner=formula(accuracy, base)
    )
    return Results.of(comparison)


def test_lora_within_the_interval_of_full_is_a_right_choice(config: TextRun, tmp_path: Path) -> None:
    found = said(config, tmp_path / "out", {"full": 0.8, "lora@1": 0.7, "lora@4": 0.79})
    judged = verdict(found)  # full: 0.8 ± 4.303 x 0.01 / sqrt(3) = 0.8 ± 0.0248
    assert judged is not None
    assert (judged.best.name, [row.name for row in judged.equals]) == ("full", ["lora@4", "full"])
    text = " ".join(sentences(found))
    assert "Best accuracy: full (0.800; 95% interval over 3 seeds: 0.775 to 0.825)" in text
    assert "Within that interval: lora@4 (0.790). Of all of these, lora@4 has the smallest checkpoint" in text
    assert "LoRA was a right choice here: lora@4 is as good as the best, at 0.40% of full's bytes." in text
    assert "The base alone" not in text


def test_lora_outside_of_it_is_not(config: TextRun, tmp_path: Path) -> None:
    text = " ".join(sentences(said(config, tmp_path / "out", {"full": 0.8, "lora@1": 0.7})))
    assert "No other method is within that interval." in text
    assert "LoRA was not the best choice here: at its best, lora@1, it reaches 0.700" in text


def test_a_gain_that_may_be_none_is_said(config: TextRun, tmp_path: Path) -> None:
    text = " ".join(sentences(said(config, tmp_path / "out", {"lora@1": 0.7}, base=0.69)))
    assert "The base alone is no worse (0.690): training has gained nothing certain." in text


def test_one_seed_has_no_interval(config: TextRun, tmp_path: Path) -> None:
    found = said(config, tmp_path / "out", {"full": 0.8, "lora@1": 0.8}, seeds=1)
    assert found.methods[1].scores["accuracy"].half is None
    assert "With one seed nothing can be said" in sentences(found)[0]


def test_the_interval_is_students(tmp_path: Path) -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees of freedom, standard deviation 1
    assert estimate.holds(4.48)
    assert not estimate.holds(4.49)


def test_ranks_are_for_the_methods_that_have_one() -> None:
    names = [each.name for each in Candidate.all_of(["lora", "dora@2", "prefix"], [1, 4], 16)]
    assert names == ["lora@1", "lora@4", "dora@2", "prefix"]
    assert [each.name for each in Candidate.all_of(["lora"], [], 16)] == ["lora@16"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lorra"], r"there is no method 'lorra'; did you mean 'lora'"),
        (["prefix@4"], "prefix has no rank; write 'prefix'"),
        (["lora@x"], "expected a rank such as lora@4"),
        (["lora@1", "lora"], "lora@1 is named twice"),
        ([], "name some of lora, dora"),
    ],
)
def test_methods_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Candidate.all_of(words, [1], 16)


@pytest.mark.parametrize("name", list(methods))
def test_every_method_is_a_run_that_can_be(config: TextRun, name: str) -> None:
    for candidate in Candidate.all_of([name], [4], 16):
        changed = candidate.settings(config, 0.5, 3)
        assert (changed.learning_rate, changed.seed, changed.train) == (0.5, 3, "train.jsonl")
        assert (changed.rank == 4) is candidate.method.has_rank


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"version": 0}'])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(FormatError, match=r"results\.json"):
        Results.load(tmp_path / "results.json")
