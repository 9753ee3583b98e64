"""The search itself, on losses whose best weights are known."""

import math
import threading
import time
from collections.abc import Sequence

import pytest

from weft.errors import ConfigError, TrainingError
from weft.training.weight_search import Loss, WeightSearch, search, starts

BEST = (0.7, 0.3, -0.4)
CURVATURE = (1.0, 0.5, 2.0)


def bowl(weights: Sequence[float]) -> float:
    """A loss whose minimum, 1, is at `BEST`."""
    terms = zip(weights, BEST, CURVATURE, strict=True)
    return 1 + sum(h * (w - best) ** 2 for w, best, h in terms)


def counted(loss: Loss) -> tuple[Loss, list[Sequence[float]]]:
    seen: list[Sequence[float]] = []

    def call(weights: Sequence[float]) -> float:
        seen.append(weights)
        return loss(weights)

    return call, seen


def test_the_best_weights_are_found() -> None:
    found = search(bowl, 3, WeightSearch(budget=60, penalty=0))
    assert found.best.weights == pytest.approx(BEST, abs=0.02)
    assert found.best.loss == pytest.approx(1, abs=1e-3)


def test_the_penalty_shrinks_weights_as_the_closed_form_says() -> None:
    """The minimum of h (w - t)^2 + p |w| is at t moved towards 0 by p / 2h, and at 0 if that is further."""
    penalty = 0.4
    expected = [math.copysign(max(abs(t) - penalty / (2 * h), 0), t) for t, h in zip(BEST, CURVATURE, strict=True)]
    assert expected[1] == 0
    found = search(bowl, 3, WeightSearch(budget=80, penalty=penalty))
    assert found.best.weights == pytest.approx(expected, abs=0.03)
    assert found.best.objective == pytest.approx(found.best.loss + penalty * sum(map(abs, found.best.weights)))


def test_every_evaluation_is_a_trial_and_the_starts_come_first() -> None:
    loss, seen = counted(bowl)
    told: list[tuple[int, float]] = []
    found = search(loss, 3, WeightSearch(budget=20), lambda trial, best: told.append((len(seen), best.objective)))
    assert len(seen) == len(found.trials) == 20
    assert [trial.weights for trial in found.trials] == [tuple(weights) for weights in seen]
    assert [trial.weights for trial in found.trials[:5]] == starts(3)
    assert [number for number, _ in told] == list(range(1, 21))
    assert told[-1][1] == found.best.objective


def test_the_same_losses_give_the_same_trials() -> None:
    assert search(bowl, 3) == search(bowl, 3)


def test_by_default_there_are_ten_trials_for_each_weight() -> None:
    assert len(search(bowl, 3).trials) == 30


def test_the_result_is_never_worse_than_a_start_even_where_the_penalty_prefers_it() -> None:
    def loss(weights: Sequence[float]) -> float:
        return 0.99 if weights == (0.0, 1.0) else 1.0  # 0.01 better, and a penalty of 0.05 dearer, than nothing at all

    found = search(loss, 2)
    assert min(found.trials, key=lambda trial: trial.objective).weights == (0.0, 0.0)
    assert found.best.weights == (0.0, 1.0)


@pytest.mark.parametrize("bounds", [(-1.5, 1.5), (0.0, 1.0), (-0.2, 3.0)])
def test_weights_stay_within_the_bounds(bounds: tuple[float, float]) -> None:
    found = search(bowl, 3, WeightSearch(budget=60, bounds=bounds, penalty=0))
    assert all(bounds[0] <= weight <= bounds[1] for trial in found.trials for weight in trial.weights)
    expected = [min(max(best, bounds[0]), bounds[1]) for best in BEST]
    assert found.best.weights == pytest.approx(expected, abs=0.05)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    def loss(weights: Sequence[float]) -> float:
        return math.nan if weights[0] > 0.5 else math.inf if weights[0] < -0.5 else bowl(weights)

    found = search(loss, 3, WeightSearch(budget=60, penalty=0))
    assert found.best.weights[0] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(TrainingError, match="no loss is a number"):
        search(lambda weights: math.nan, 3)


def test_an_interrupted_search_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    loss, seen = counted(bowl)

    def interrupted(weights: Sequence[float]) -> float:
        if len(seen) == 12:
            raise KeyboardInterrupt
        return loss(weights)

    with pytest.raises(KeyboardInterrupt):
        search(interrupted, 3)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": (0.2, 1.5)}, "bounds: expected two numbers with 0 and 1 between them"),
        ({"bounds": (-1.5, 0.5)}, "found -1.5,0.5"),
        ({"bounds": (-math.inf, 1.5)}, "found -inf,1.5"),
        ({"penalty": -0.1}, "penalty: expected a number of at least 0, found -0.1"),
        ({"budget": 9}, "budget: 9 evaluations are too few for 3 weights: 5 go to .* give at least 10, better 30"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_tried(
    settings: dict[str, object], message: str
) -> None:
    loss, seen = counted(bowl)
    with pytest.raises(ConfigError, match=message):
        search(loss, 3, WeightSearch(**settings))  # type: ignore[arg-type]
    assert not seen
