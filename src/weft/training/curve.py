"""The rank after the training: what an adapter keeps of its gain at each lower rank, measured on held-out text.

An adapter at rank k is the prefix of its factors in their order: of nested factors (`weft.training.nested`) the order
in which they were trained, of any other that of their singular values, for which the prefix is the truncated SVD, the
nearest matrix of rank k (Eckart and Young, 1936). So each module's SVD is taken once, from the factors alone, the base
is loaded once, and each rank is a narrower view of the same tensors. Nothing is trained again.

Every rank is evaluated on the same rows. How far a loss, or the difference of two, may be off because these rows and
no others were drawn, is found by the bootstrap over rows (Efron, 1979), percentile intervals of 95%. The difference to
the whole adapter is taken on the same rows, row by row, and so is known far better than either loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.adapter import Adapter
from weft.algebra.finite import require_finite
from weft.algebra.lineage import input_of, with_lineage
from weft.config import Standard
from weft.data.text import TextDataset
from weft.errors import ConfigError, DataError
from weft.linalg import LowRank
from weft.model import activate, active, attach, detach
from weft.model.prefix import NESTED, factors_of, prefix
from weft.model.state import has_state, state_of
from weft.nn import Factors
from weft.training.nested import powers_of_two
from weft.training.row_scores import RowScorer, RowScores

Interval = tuple[float, float]
"""The ends of a 95% interval."""

_NAME = "rank-curve"
_BLOCK = 2**22  # draws of rows at a time


@dataclass(frozen=True)
class RankPoint:
    """An adapter at one rank.

    Attributes:
        rank: the rank of each module at most; 0 is the base alone.
        nbytes: the size of the adapter's tensors at that rank.
        loss: nats per learned token, as `evaluate` has it.
        loss_interval: of it.
        worse: how much higher the loss is than the whole adapter's on the same rows; below 0 where it is lower.
        worse_interval: of that difference.
    """

    rank: int
    nbytes: int
    loss: float
    loss_interval: Interval
    worse: float
    worse_interval: Interval


@dataclass(frozen=True)
class RankCurve:
    """What an adapter is worth at each rank.

    Attributes:
        order: what a rank keeps: the first factors as "trained", or the largest singular values ("svd").
        points: by rank: the base first, the whole adapter last.
        rows, tokens: what was evaluated on; tokens are learned ones.
        resamples, seed: of the bootstrap.
    """

    order: Literal["svd", "trained"]
    points: tuple[RankPoint, ...]
    rows: int
    tokens: int
    resamples: int
    seed: int

    @property
    def gain(self) -> float:
        """What the whole adapter gains over the base, in nats per token."""
        return self.points[0].worse

    def kept(self, point: RankPoint) -> float | None:
        """The share of the gain that a rank keeps; None where there is no gain."""
        return 1 - point.worse / self.gain if self.gain > 0 else None

    def smallest(self, tolerance: float) -> RankPoint | None:
        """The lowest rank that gives up no more than this share of the gain, with 97.5% confidence.

        That is, whose `worse_interval` ends at `tolerance` times the gain or below. Where few rows leave that open,
        it is a higher rank; the whole adapter always qualifies. None where it is not certain that there is a gain,
        because the interval of the base's difference to the whole adapter does not lie above 0.

        Raises:
            ConfigError: the tolerance is no share.
        """
        check_tolerance(tolerance)
        if self.points[0].worse_interval[0] <= 0:
            return None
        return next(point for point in self.points if point.worse_interval[1] <= tolerance * self.gain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        points = [{**asdict(point), "kept": self.kept(point)} for point in self.points]
        return {**asdict(self), "gain": self.gain, "points": points}


def rank_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    adapter: Adapter,
    *,
    ranks: Sequence[int] | None = None,
    batch_size: int = 8,
    resamples: int = 2000,
    seed: int = 0,
    any_base: bool = False,
    progress: Callable[[int], None] = lambda rank: None,
) -> RankCurve:
    """Evaluates an adapter at each of these ranks, at rank 0 (the base alone) and whole.

    What was trained beside the factors (biases, magnitudes, whole modules) stays at every rank but 0.

    Args:
        model: the base; whatever is attached to it is attached, and active, again afterwards.
        tokenizer: the model's.
        dataset: held-out text, from `load_text`.
        adapter: the adapter.
        ranks: from 1 to the adapter's; by default powers of two.
        batch_size: rows at a time.
        resamples, seed: of the bootstrap.
        any_base: evaluate an adapter that was made for another base.
        progress: called with each rank before it is evaluated.

    Raises:
        ConfigError: an adapter without factors, or with NaN or infinity in them; a rank that it does not have.
        DataError: fewer than two rows, which say nothing of what others would give.
        BaseMismatchError, BindingError: the adapter does not fit the model.
    """
    whole = _whole_rank(adapter)
    lower = _checked(ranks, whole)
    require_finite(adapter, "the adapter")
    if len(dataset) < 2:
        raise DataError("the data set has one row; evaluate on two at least, better on hundreds")

    scorer = RowScorer(model, tokenizer, dataset, batch_size=batch_size)
    found: dict[int, RowScores] = {}

    def evaluate(rank: int) -> None:
        progress(rank)
        found[rank] = scorer.scores()

    with _attached(model, adapter, any_base):
        with active(model, None):
            evaluate(0)
        evaluate(whole)
    sorted_factors = ordered(adapter)
    with _attached(model, sorted_factors, any_base) as factors:
        for rank in lower:
            with prefix(factors, rank):
                evaluate(rank)
    sizes = {0: 0, **{rank: _nbytes(sorted_factors, rank) for rank in lower}, whole: adapter.nbytes}
    losses = torch.stack([found[rank].loss for rank in sizes], dim=1)
    return RankCurve(
        order="trained" if is_nested(adapter) else "svd",
        points=_points(sizes, found[0].tokens.numpy(), losses.numpy(), resamples, seed),
        rows=len(dataset),
        tokens=int(found[0].tokens.sum()),
        resamples=resamples,
        seed=seed,
    )


def is_nested(adapter: Adapter) -> bool:
    """Whether the prefixes of the adapter's factors are what was trained.

    What keeps or lowers an adapter's rank leaves its prefixes what they were, or takes the SVD; a sum stacks factors,
    and has more of them than were trained.
    """
    ranks = adapter.provenance.get(NESTED)
    return isinstance(ranks, list) and _whole_rank(adapter) <= max(ranks)


def ordered(adapter: Adapter) -> Adapter:
    """The same adapter with factors of which each prefix is the adapter at that rank."""
    if is_nested(adapter):
        return adapter
    balanced = {id(value): value.balanced().to(dtype=value.dtype) for value in adapter.factors.values()}
    return replace(adapter, factors={path: balanced[id(value)] for path, value in adapter.factors.items()})


def at_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with the rank of each module reduced to `rank` where it is higher; the whole one as it is.

    Raises:
        ConfigError: a rank below 1, or an adapter without factors.
    """
    if rank < 1:
        raise ConfigError(f"rank: expected 1 or more, found {rank}; rank 0 is the base alone")
    if rank >= _whole_rank(adapter):
        return adapter
    values = ordered(adapter).factors
    kept = {
        id(value): LowRank(value.B[:, :rank].contiguous(), value.A[:rank].contiguous(), value.scaling)
        for value in values.values()
    }
    factors = {path: kept[id(value)] for path, value in values.items()}
    alpha = rank * next(iter(factors.values())).scaling
    config = replace(adapter.config, rank=rank, alpha=alpha, rank_pattern={}, alpha_pattern={}, scaling=Standard())
    return replace(adapter, config=config, factors=factors)


def chosen(adapter: Adapter, curve: RankCurve, tolerance: float, *, data: str, name: str | None = None) -> Adapter:
    """The adapter at the lowest rank within a tolerance (`RankCurve.smallest`); its lineage says how it was chosen.

    Args:
        adapter: the adapter whose curve it is.
        curve: from `rank_curve`.
        tolerance: the share of the gain that may be given up.
        data: what the held-out text is called.
        name: how the lineage calls the adapter.

    Raises:
        ConfigError: the tolerance is no share, or it is not certain that the adapter gains anything.
    """
    point = curve.smallest(tolerance)
    if point is None:
        low, high = curve.points[0].worse_interval
        raise ConfigError(
            f"on these {curve.rows:,} rows the adapter gains {curve.gain:.4f} nats a token over the base (95%: "
            f"{low:.4f} to {high:.4f}), so that there may be no gain to keep; evaluate on what it was trained for, or "
            "on more rows"
        )
    settings = {
        "rank": point.rank, "order": curve.order, "tolerance": tolerance, "kept": curve.kept(point), "data": data
    }  # fmt: skip
    return with_lineage(at_rank(adapter, point.rank), "curve", [input_of(adapter, name=name)], settings)


def check_tolerance(tolerance: float) -> None:
    """Raises ConfigError if a tolerance is no share of the gain."""
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance: expected a share of the gain from 0 up to, but not, 1, found {tolerance:g}")


def _whole_rank(adapter: Adapter) -> int:
    """The highest rank of a module."""
    if not adapter.factors:
        raise ConfigError("this adapter has no factors, only tensors trained whole; there is no rank to choose")
    return max(value.rank for value in adapter.factors.values())


def _checked(ranks: Sequence[int] | None, whole: int) -> list[int]:
    """The ranks to evaluate between 0 and the whole."""
    for rank in ranks or ():
        if not 0 <= rank <= whole:
            raise ConfigError(f"ranks: this adapter's go from 0, the base, to {whole}; found {rank}")
    return sorted({*(powers_of_two(whole) if ranks is None else ranks)} - {0, whole})


def _nbytes(adapter: Adapter, rank: int) -> int:
    """The size of an adapter reduced to `rank`."""
    cut = (sum(value.shape) * max(0, value.rank - rank) * value.dtype.itemsize for value in adapter.factors.values())
    return adapter.nbytes - sum(cut)


@contextmanager
def _attached(model: PreTrainedModel, adapter: Adapter, any_base: bool) -> Iterator[list[Factors]]:
    """An adapter attached, and active alone, for the length of a ``with`` block; its factors."""
    before = dict(state_of(model).active) if has_state(model) else {}
    attach(model, adapter, _NAME, any_base=any_base)
    try:
        yield factors_of(model, _NAME)
    finally:
        detach(model, _NAME)
        if before:
            activate(model, before)


def _points(
    sizes: Mapping[int, int], tokens: NDArray[np.int64], losses: NDArray[np.float64], resamples: int, seed: int
) -> tuple[RankPoint, ...]:
    """The points from the learned tokens of each row, (rows), and its summed losses at each rank, (rows, ranks)."""
    means = losses.sum(0) / tokens.sum()
    drawn = np.concatenate(list(_resampled(tokens, losses, resamples, seed)))  # (resamples, ranks)
    loss_ends = np.quantile(drawn, (0.025, 0.975), axis=0).tolist()
    worse_ends = np.quantile(drawn - drawn[:, -1:], (0.025, 0.975), axis=0).tolist()
    return tuple(
        RankPoint(rank, nbytes, float(mean), loss_interval, float(mean - means[-1]), worse_interval)
        for (rank, nbytes), mean, loss_interval, worse_interval in zip(
            sizes.items(), means, zip(*loss_ends, strict=True), zip(*worse_ends, strict=True), strict=True
        )
    )


def _resampled(
    tokens: NDArray[np.int64], losses: NDArray[np.float64], resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Blocks (some, ranks) of mean losses per token over as many rows as there are, drawn with replacement."""
    draw, rows = np.random.default_rng(seed), len(tokens)
    sums = np.column_stack([tokens, losses])
    block = max(1, _BLOCK // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        places = draw.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * rows).reshape(size, rows)  # how often each row came
        totals = counts @ sums
        yield totals[:, 1:] / totals[:, :1]
