"""A search for weights without gradients, as LoraHub's (Huang et al., 2023, arXiv 2307.13269), over any loss.

It minimizes loss(w) + penalty * sum |w_i| within bounds, by nevergrad's COBYLA (Powell, 1994): linear models of the
objective in a trust region. The authors' optimizer, nevergrad's portfolio Shiwa, leaves searches of this size to it;
the loss of fixed rows is smooth and without noise, and there it needs the fewest evaluations. It draws nothing at
random. First the starts are tried: every weight 0, equal weights, and each weight alone at 1; the search sets out from
the best of them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nevergrad
import numpy as np

from weft.errors import ConfigError, TrainingError

Loss = Callable[[Sequence[float]], float]

_HIGH = 1e6  # in place of infinity, which the optimizer cannot calculate with


@dataclass(frozen=True)
class WeightSearch:
    """How to search.

    Attributes:
        budget: evaluations of the loss in all, the starts among them; None for ten for each weight.
        bounds: the smallest and the largest weight; 0 and 1 are between them.
        penalty: of the sum of the weights' sizes, which keeps down those that hardly help.

    Raises:
        ConfigError: bounds or a penalty that cannot be.
    """

    budget: int | None = None
    bounds: tuple[float, float] = (-1.5, 1.5)
    penalty: float = 0.05

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0 and high >= 1):
            raise ConfigError(
                f"bounds: expected two numbers with 0 and 1 between them, such as -1.5,1.5; found {low:g},{high:g}"
            )
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise ConfigError(f"penalty: expected a number of at least 0, found {self.penalty!r}")

    def evaluations(self, count: int) -> int:
        """The budget for so many weights.

        Raises:
            ConfigError: it does not reach beyond the starts and the optimizer's first model.
        """
        budget = 10 * count if self.budget is None else self.budget
        fewest = (count + 2) + (count + 1) + 1
        if budget < fewest:
            raise ConfigError(
                f"budget: {budget} evaluations are too few for {count} weights: {count + 2} go to the base alone, "
                f"equal weights and each one alone, and {count + 1} to a first model; give at least {fewest}, better "
                f"{10 * count}"
            )
        return budget


@dataclass(frozen=True)
class Trial:
    """Weights that were tried, their loss, and the objective: the loss and the penalty."""

    weights: tuple[float, ...]
    loss: float
    objective: float


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        best: the trial with the lowest objective among those whose loss is no higher than that of any start.
        trials: all of them, in order: the starts, then the optimizer's.
    """

    best: Trial
    trials: tuple[Trial, ...]


def starts(count: int) -> list[tuple[float, ...]]:
    """What is tried first: every weight 0, equal weights that sum to 1, and each weight alone at 1."""
    alone = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    return [(0.0,) * count, (1 / count,) * count, *alone]


def search(
    loss: Loss,
    count: int,
    settings: WeightSearch = WeightSearch(),
    progress: Callable[[Trial, Trial], None] = lambda trial, best: None,
) -> Search:
    """The weights of the lowest loss plus penalty that were found.

    Args:
        loss: of `count` weights; infinity and NaN count as too high.
        count: weights, at least 1.
        settings: budget, bounds and penalty.
        progress: called after each evaluation with its trial and the best so far.

    Raises:
        ConfigError: the budget is too small for so many weights.
        TrainingError: the loss of no start is a number.
    """
    first = starts(count)
    left = settings.evaluations(count) - len(first)
    trials: list[Trial] = []

    def attempt(weights: Sequence[float]) -> Trial:
        found = loss(weights)
        objective = found + settings.penalty * sum(map(abs, weights)) if math.isfinite(found) else math.inf
        trials.append(Trial(tuple(weights), found, objective))
        progress(trials[-1], _best(trials, len(first)))
        return trials[-1]

    origin = min((attempt(weights) for weights in first), key=lambda trial: trial.objective)
    if not math.isfinite(origin.objective):
        raise TrainingError("no loss is a number: not of the base alone, of equal weights, or of any one adapter")
    low, high = settings.bounds
    space = nevergrad.p.Array(init=np.array(origin.weights), lower=low, upper=high)
    space.random_state = np.random.RandomState(0)  # else it would seed itself from NumPy's global state
    optimizer: Any = nevergrad.optimizers.registry["Cobyla"](space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of a radius, where the optimizer has converged and sets out anew
        try:
            for _ in range(left):
                candidate = optimizer.ask()
                trial = attempt([float(weight) for weight in candidate.value])
                optimizer.tell(candidate, min(trial.objective, _HIGH))
        finally:
            del optimizer  # which ends its thread
    return Search(_best(trials, len(first)), tuple(trials))


def _best(trials: Sequence[Trial], num_starts: int) -> Trial:
    """See `Search.best`."""
    bound = min((trial.loss for trial in trials[:num_starts] if math.isfinite(trial.loss)), default=math.inf)
    return min((t for t in trials if t.loss <= bound), key=lambda trial: trial.objective, default=trials[0])
