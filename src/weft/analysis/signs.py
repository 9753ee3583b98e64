"""Signs of over- and underfitting: small rules over a run's lines of metrics and an adapter's spectra.

Each rule takes plain numbers and answers with a `Sign` or with None. The thresholds are the constants below: rules of
thumb, not laws, chosen so that what they say is worth a look.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from weft.analysis.inspect import AdapterNumbers

RISE = 0.01
"""Held-out loss this share above its lowest is turning up."""
GAP = 0.2
"""Held-out loss this share above the training loss is a wide gap."""
FALL = 0.01
"""Held-out loss that fell by this share over the last quarter of the run is still falling."""
FALL_OF_TRAINING = 0.03
"""The same of the training loss, which is noisy."""
NO_GAIN = 0.005
"""Held-out loss that fell by less than this share of the base's has not learned."""
SATURATED = 0.5
"""A median saturation above this is a full rank: the last directions are half as strong as the average one."""
SPARE = 0.5
"""99% of the energy in this share of the rank, or less, leaves rank to spare."""
SPIKE = 10.0
"""A gradient this many times the median is a spike."""
CLIPPED = 0.9
"""Gradients clipped in this share of the logged steps, or more, are clipped nearly always."""
RANKS_TO_JUDGE = 4
"""Below this rank, neither saturation nor spare rank is judged: there are too few directions."""


class Level(StrEnum):
    """How much a sign matters."""

    note = "note"
    warning = "warning"


@dataclass(frozen=True)
class Sign:
    """One observation.

    Attributes:
        rule: the rule's name.
        level: how much it matters.
        text: what was seen, and what to do about it.
    """

    rule: str
    level: Level
    text: str


@dataclass(frozen=True)
class Curves:
    """A run's losses, as (optimizer step, nats per token), in the order of the steps.

    Attributes:
        training: the logged training losses, each a mean over the steps since the one before.
        held_out: the evaluations, that of the base (step 0) among them.
        gradients: (step, norm of the gradient before clipping).
        kept: the held-out loss of the weights that the run kept; None if it was not logged.
        broken: the first step whose training loss was no number.
    """

    training: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]
    gradients: tuple[tuple[int, float], ...]
    kept: float | None
    broken: int | None

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> "Curves":
        """Reads lines of metrics: "step" with "loss", "grad_norm" or "eval_loss"; "final" marks the last evaluation."""
        ordered = sorted((line for line in lines if isinstance(line.get("step"), int)), key=lambda line: line["step"])
        running = [line for line in ordered if "final" not in line]
        final = [_number(line.get("eval_loss")) for line in ordered if "final" in line]
        return cls(
            _points(running, "loss"),
            _points(running, "eval_loss"),
            _points(running, "grad_norm"),
            final[-1] if final else None,
            next((line["step"] for line in running if "loss" in line and _number(line["loss"]) is None), None),
        )


def signs(
    lines: Iterable[Mapping[str, Any]], numbers: AdapterNumbers, max_grad_norm: float | None = None
) -> list[Sign]:
    """Every sign that a run and its adapter give, warnings first.

    Args:
        lines: the run's metrics; none where there is no run.
        numbers: the adapter's.
        max_grad_norm: what the gradient was clipped to, if that is known.
    """
    curves = Curves.of(lines)
    found = [
        diverged(curves),
        overfitting(curves),
        wide_gap(curves),
        nothing_learned(curves),
        still_falling(curves),
        gradient_spikes(curves),
        always_clipped(curves, max_grad_norm),
        rank_saturated(numbers),
        rank_to_spare(numbers),
        untouched_modules(numbers),
    ]
    order = list(reversed(Level))
    return sorted((sign for sign in found if sign is not None), key=lambda sign: order.index(sign.level))


def diverged(curves: Curves) -> Sign | None:
    """Whether the training loss stopped being a number."""
    if curves.broken is None:
        return None
    return Sign(
        "diverged",
        Level.warning,
        f"The training loss is no number from step {curves.broken} on: the run diverged. Lower the learning rate, or "
        "clip the gradient.",
    )


def overfitting(curves: Curves) -> Sign | None:
    """Whether the held-out loss turned up before the end, by more than `RISE`."""
    if len(curves.held_out) < 3:
        return None
    best_step, best = min(curves.held_out, key=lambda point: point[1])
    last_step, last = curves.held_out[-1]
    if last <= best * (1 + RISE):
        return None
    kept = curves.kept is not None and curves.kept <= best * (1 + RISE / 10)
    advice = (
        "The run kept the weights of that step."
        if kept
        else f"Take the weights of step {best_step} (keep_best), or stop there (early_stopping)."
    )
    return Sign(
        "overfitting",
        Level.note if kept else Level.warning,
        f"Overfitting: the held-out loss was lowest at step {best_step} ({best:.3f}) and rose to {last:.3f} by step "
        f"{last_step}. {advice} More data, dropout, a lower rank or a lower learning rate put the turn off.",
    )


def wide_gap(curves: Curves) -> Sign | None:
    """Whether the held-out loss at the end is more than `GAP` above the training loss of that time."""
    if not curves.held_out or not curves.training:
        return None
    training = _late(curves.training)
    held_out = curves.held_out[-1][1]
    if held_out <= training * (1 + GAP):
        return None
    return Sign(
        "gap",
        Level.note,
        f"At the end the held-out loss ({held_out:.3f}) is {held_out / training - 1:.0%} above the training loss "
        f"({training:.3f}): the adapter knows its training rows better than others. If the held-out loss also turns "
        "up it is overfitting; if not, check that both sets are of one kind.",
    )


def nothing_learned(curves: Curves) -> Sign | None:
    """Whether the held-out loss is where the base's was, to `NO_GAIN`."""
    if len(curves.held_out) < 2 or curves.held_out[0][0] != 0:
        return None
    before = curves.held_out[0][1]
    best = min(loss for _, loss in curves.held_out[1:])
    if best <= before * (1 - NO_GAIN):
        return None
    return Sign(
        "nothing learned",
        Level.warning,
        f"The held-out loss never fell below the base's ({before:.3f}; at best {best:.3f}): nothing was learned that "
        "helps there. Try a learning rate ten times higher or lower, and look at a few rows as the model sees them.",
    )


def still_falling(curves: Curves) -> Sign | None:
    """Whether the loss fell by more than `FALL` in the last quarter.

    The held-out loss is asked, or with fewer than four evaluations after the start the training loss, and that by
    more than `FALL_OF_TRAINING`.
    """
    held_out = [point for point in curves.held_out if point[0] > 0]
    name, points, fall = (
        ("held-out", held_out, FALL) if len(held_out) >= 4 else ("training", _smooth(curves.training), FALL_OF_TRAINING)
    )
    if len(points) < 4:
        return None
    last_step, last = points[-1]
    before = [loss for step, loss in points if step <= 0.75 * last_step]
    if not before or last >= before[-1] * (1 - fall):
        return None
    return Sign(
        "still falling",
        Level.note,
        f"Underfitting: the {name} loss was still falling at the end, from {before[-1]:.3f} to {last:.3f} in the last "
        "quarter. Train longer, or with a higher learning rate.",
    )


def gradient_spikes(curves: Curves) -> Sign | None:
    """Whether a gradient was `SPIKE` times the median one."""
    if len(curves.gradients) < 4:
        return None
    median = statistics.median(norm for _, norm in curves.gradients)
    step, largest = max(curves.gradients, key=lambda point: point[1])
    if median == 0 or largest < SPIKE * median:
        return None
    return Sign(
        "gradient spikes",
        Level.note,
        f"The gradient's norm rose to {largest:.3g} at step {step}, {largest / median:.0f} times the median "
        f"({median:.3g}): a row there may be broken, or the learning rate too high.",
    )


def always_clipped(curves: Curves, max_grad_norm: float | None) -> Sign | None:
    """Whether nearly every gradient was longer than what it is clipped to."""
    if not max_grad_norm or len(curves.gradients) < 4:
        return None
    share = sum(norm > max_grad_norm for _, norm in curves.gradients) / len(curves.gradients)
    if share < CLIPPED:
        return None
    return Sign(
        "always clipped",
        Level.note,
        f"{share:.0%} of the logged gradients were clipped to {max_grad_norm:g}: the size of a step is set by the "
        "clipping. Raise max_grad_norm, or lower the learning rate.",
    )


def rank_saturated(numbers: AdapterNumbers) -> Sign | None:
    """Whether the median saturation of the modules (see `spectrum.saturation`) is above `SATURATED`."""
    judged = [m.spectrum.saturation for m in numbers.modules if m.rank >= RANKS_TO_JUDGE and m.spectrum.norm > 0]
    if not judged or statistics.median(judged) <= SATURATED:
        return None
    return Sign(
        "rank saturated",
        Level.note,
        f"The rank is full: the last quarter of the directions is {statistics.median(judged):.0%} as strong as the "
        "average one (median of the modules). If the loss is not good enough yet, a higher rank may help.",
    )


def rank_to_spare(numbers: AdapterNumbers) -> Sign | None:
    """Whether 99% of the energy of most modules lies in `SPARE` of their rank."""
    judged = [m for m in numbers.modules if m.rank >= RANKS_TO_JUDGE and m.spectrum.norm > 0]
    if not judged:
        return None
    spare = sum(m.spectrum.rank_99 <= SPARE * m.rank for m in judged)
    if spare <= len(judged) / 2:
        return None
    return Sign(
        "rank to spare",
        Level.note,
        f"In {spare} of {len(judged)} modules, {SPARE:.0%} of the rank holds 99% of the energy: `weft resize` "
        "with --energy 0.99 makes the adapter smaller at little cost, and a lower rank would have trained it.",
    )


def untouched_modules(numbers: AdapterNumbers) -> Sign | None:
    """Whether changes are exactly zero."""
    zero = [m.path for m in numbers.modules if m.spectrum.norm == 0]
    if not zero:
        return None
    every = len(zero) == len(numbers.modules)
    return Sign(
        "untouched modules",
        Level.warning,
        f"{'All' if every else len(zero)} of {len(numbers.modules)} modules are not changed at all, first {zero[0]}: "
        + ("the adapter is untrained." if every else "they got no gradient. Exclude them, or find out why."),
    )


def _points(lines: Iterable[Mapping[str, Any]], key: str) -> tuple[tuple[int, float], ...]:
    return tuple((line["step"], value) for line in lines if (value := _number(line.get(key))) is not None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _late(points: Sequence[tuple[int, float]]) -> float:
    """The mean loss of the last tenth of the points."""
    return statistics.fmean(loss for _, loss in points[-max(1, len(points) // 10) :])


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Eight means of consecutive points, each at its last step, since single training losses are noisy."""
    if len(points) < 16:
        return []
    ends = [round(len(points) * k / 8) for k in range(9)]
    return [(points[b - 1][0], statistics.fmean(loss for _, loss in points[a:b])) for a, b in pairwise(ends)]
