"""Signs of over- and underfitting: each rule where it applies, and where it does not."""

import dataclasses
import inspect as inspect_module
from typing import Any

import pytest
import torch

import weft
from weft.analysis import signs as module
from weft.analysis.inspect import AdapterNumbers, inspect
from weft.analysis.signs import Curves, Level, signs

from .adapters import adapter_of


def run(held_out: list[float], training: list[float] | None = None, **final: float) -> list[dict[str, Any]]:
    """Lines as a run writes them: an evaluation at step 0 and every 100 steps, a training loss every 10."""
    lines: list[dict[str, Any]] = [{"step": 100 * i, "eval_loss": loss} for i, loss in enumerate(held_out)]
    lines += [{"step": 10 * i, "loss": loss, "grad_norm": 0.5} for i, loss in enumerate(training or [], 1)]
    return lines + ([{"step": 100 * len(held_out), "final": True, **final}] if final else [])


def numbers(*S: float, rank: int = 8) -> AdapterNumbers:
    """An adapter of one module with these singular values."""
    values = [*S, *[0.0] * (rank - len(S))]
    return inspect(adapter_of({"h.0.q": weft.LowRank(torch.eye(20, rank) * torch.tensor(values), torch.eye(rank, 15))}))


FITS = numbers(8, 7, 6, 5, 4, 3, 2, 1.5)


def rules(lines: list[dict[str, Any]], adapter: AdapterNumbers = FITS, clip: float | None = None) -> dict[str, Level]:
    return {sign.rule: sign.level for sign in signs(lines, adapter, clip)}


def test_a_good_run_has_no_sign() -> None:
    assert rules(run([5.0, 3.0, 2.5, 2.31, 2.3, 2.3], [2.5] * 50)) == {}


def test_a_loss_that_turns_up() -> None:
    rising = [5.0, 3.0, 2.5, 2.6, 2.9]
    (sign,) = signs(run(rising, [2.5] * 40), FITS)
    assert (sign.rule, sign.level) == ("overfitting", Level.warning)
    assert "lowest at step 200 (2.500)" in sign.text
    assert "2.900 by step 400" in sign.text
    (sign,) = signs(run(rising, [2.5] * 40, eval_loss=2.5), FITS)  # the run kept the best weights
    assert sign.level is Level.note
    assert "kept the weights of that step" in sign.text
    assert "overfitting" not in rules(run([5.0, 3.0, 2.5, 2.51], [2.5] * 40))  # within RISE


def test_a_gap_between_training_and_held_out() -> None:
    assert rules(run([5.0, 2.5, 2.5, 2.5, 2.5], [2.0] * 40)) == {"gap": Level.note}
    assert rules(run([5.0, 2.5, 2.5, 2.5, 2.5], [2.2] * 40)) == {}


def test_a_run_that_learned_nothing() -> None:
    assert rules(run([2.5, 2.6, 2.5, 2.499, 2.5], [2.5] * 40)) == {"nothing learned": Level.warning}
    assert rules(run([2.5, 2.4, 2.4, 2.4, 2.4], [2.4] * 40)) == {}


@pytest.mark.parametrize(
    ("held_out", "training", "found"),
    [
        ([5.0, 4.0, 3.5, 3.0, 2.5], [2.5] * 40, "held-out loss was still falling at the end, from 3.000 to 2.500"),
        ([5.0, 2.6], [5 - 0.05 * i for i in range(40)], "training loss was still falling"),
        ([5.0, 2.6], [2.6] * 40, None),
        ([], [5 - 0.05 * i for i in range(12)], None),  # too few to judge
    ],
)
def test_a_loss_that_still_falls(held_out: list[float], training: list[float], found: str | None) -> None:
    texts = [sign.text for sign in signs(run(held_out, training), FITS) if sign.rule == "still falling"]
    assert len(texts) == (found is not None)
    assert found is None or found in texts[0]


def test_gradients() -> None:
    lines = run([], [2.5] * 20)
    assert rules(lines, clip=1.0) == {}
    assert rules(lines, clip=0.4) == {"always clipped": Level.note}
    lines[7]["grad_norm"] = 30.0
    (sign,) = signs(lines, FITS)
    assert (sign.rule, "step 80, 60 times the median" in sign.text) == ("gradient spikes", True)


def test_a_loss_that_is_no_number() -> None:
    lines = run([], [2.5] * 10)
    lines[4]["loss"] = None  # how a run writes what JSON cannot hold
    assert rules(lines) == {"diverged": Level.warning}


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (numbers(1, 1, 1, 1, 1, 1, 1, 0.9), {"rank saturated": Level.note}),
        (numbers(5, 3, 0.1), {"rank to spare": Level.note}),
        (numbers(0, 0), {"untouched modules": Level.warning}),
        (numbers(1, 1, rank=2), {}),  # two directions say little
    ],
)
def test_ranks(adapter: AdapterNumbers, expected: dict[str, Level]) -> None:
    assert rules([], adapter) == expected


def test_warnings_come_first() -> None:
    found = signs(run([2.5, 2.6, 2.5, 2.499, 2.5], [2.0] * 40), numbers(5, 3, 0.1))
    assert [sign.level for sign in found] == [Level.warning, Level.note, Level.note]


def test_thresholds_are_documented() -> None:
    text = inspect_module.getsource(module)
    names = [name for name in vars(module) if name.isupper()]
    assert len(names) == 10
    for name in names:
        assert f"\n{name} = " in text
        assert '"""' in text.split(f"\n{name} = ")[1].split("\n")[1]


def test_curves_leave_out_what_is_no_point() -> None:
    curves = Curves.of([{"step": 20, "loss": 1.0}, {"loss": 2.0}, {"step": 10, "loss": 3.0, "eval_loss": None}])
    assert dataclasses.asdict(curves) == {
        "training": ((10, 3.0), (20, 1.0)), "held_out": (), "gradients": (), "kept": None, "broken": None,
    }  # fmt: skip
