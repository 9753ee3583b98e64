"""LoraHub (Huang et al., 2023, arXiv 2307.13269): adapters of other tasks, weighted on a few examples of a new one.

The paper adds up the A and the B of the adapters and multiplies the sums, which mixes one adapter's A with another's B.
Here the changes themselves are added, sum of w_i s_i B_i A_i: what is searched is exactly what is written, whatever the
adapters' ranks, scalings and targets.
"""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.adapter import Adapter
from weft.algebra import Costed, combine_with_costs
from weft.data.text import TextDataset
from weft.errors import ConfigError, DataError
from weft.model import attach, detach
from weft.model.weighted import weighted
from weft.training.base import Base
from weft.training.row_scores import RowScorer
from weft.training.weight_search import Search, Trial, WeightSearch, search

_DEFAULTS = WeightSearch()


@dataclass(frozen=True)
class Losses:
    """Means of -log p over the label tokens, in nats: of the examples, and of held-out rows if there are any."""

    examples: float
    held_out: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {"examples": self.examples, "held_out": self.held_out}


@dataclass(frozen=True)
class Composition:
    """What a search over adapters found.

    Attributes:
        costed: the adapter, and what a limit of its ranks cost.
        weights: the adapters' names -> their weights.
        base: the losses of the base alone.
        equal: of all adapters at equal weights that sum to 1.
        singles: the adapters' names -> the losses of each alone, at weight 1.
        combination: of `costed.adapter`, as it is after the limit.
        search: every trial.
    """

    costed: Costed
    weights: Mapping[str, float]
    base: Losses
    equal: Losses
    singles: Mapping[str, Losses]
    combination: Losses
    search: Search

    @property
    def best_singles(self) -> tuple[str, str | None]:
        """The names of the best single adapter on the examples, and of the best on the held-out rows."""
        by_examples = min(self.singles, key=lambda name: self.singles[name].examples)
        held_out = {name: losses.held_out for name, losses in self.singles.items() if losses.held_out is not None}
        return by_examples, min(held_out, key=lambda name: held_out[name], default=None)

    @property
    def gain(self) -> Losses:
        """How much lower the combination's loss is than that of the best single adapter there; negative if higher."""
        on_examples, on_held_out = self.best_singles
        examples = self.singles[on_examples].examples - self.combination.examples
        if on_held_out is None:
            return Losses(examples, None)
        single, own = self.singles[on_held_out].held_out, self.combination.held_out
        assert single is not None
        assert own is not None
        return Losses(examples, single - own)


def search_weights(
    base: Base,
    adapters: Mapping[str, Adapter],
    examples: TextDataset,
    held_out: TextDataset | None = None,
    *,
    settings: WeightSearch = _DEFAULTS,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    batch_size: int = 8,
    any_base: bool = False,
    progress: Callable[[Trial, Trial], None] = lambda trial, best: None,
) -> Composition:
    """Searches for the weights at which adapters together have the lowest loss on a few examples.

    No gradient is taken; a trial costs one forward pass over the examples. The result is never worse on them than the
    base alone, equal weights or any single adapter, unless a limit of its ranks makes it so. With a few examples it
    fits these better than the task: `held_out` shows what of the gain is real.

    Args:
        base: from `load_base`, with nothing attached; it is left as it is.
        adapters: name -> adapter, two or more, all of this base.
        examples: rows of the new task, from `load_text`.
        held_out: other rows of it, on which nothing is chosen.
        settings: of the search.
        rank, energy, error: a limit of the result's ranks, as of `weft.combine`.
        batch_size: rows at a time.
        any_base: take also adapters that name another base.
        progress: called after each trial with it and the best so far.

    Raises:
        ConfigError: fewer than two adapters, or some that cannot be summed (magnitudes, tensors trained whole, other
            shapes), or a budget that is too small.
        BaseMismatchError: an adapter was made for another base.
        DataError: a held-out row is among the examples.
        StateError: something is attached to the base's model.
    """
    if len(adapters) < 2:
        raise ConfigError(f"adapters: found {len(adapters)}, expected two or more to choose between")
    _require_apart(examples, held_out)
    model, values = base.model, list(adapters.values())

    def scorers() -> list[RowScorer]:
        data = [examples] if held_out is None else [examples, held_out]
        return [RowScorer(model, base.tokenizer, each, batch_size=batch_size) for each in data]

    with weighted(model, values, any_base=any_base) as together:
        on_examples, *on_held_out = scorers()

        def loss(weights: Sequence[float]) -> float:
            together.set(weights)
            return on_examples.scores().mean_loss

        found = search(loss, len(adapters), settings, progress)
        starts = []
        for trial in found.trials[: len(adapters) + 2]:
            together.set(trial.weights)
            starts.append(Losses(trial.loss, on_held_out[0].scores().mean_loss if on_held_out else None))

    combined = combine_with_costs(
        values,
        "linear",
        found.best.weights,
        rank=rank,
        energy=energy,
        error=error,
        any_base=any_base,
        names=list(adapters),
    )
    costed = replace(combined, adapter=_with_method(combined.adapter, settings, examples))
    attach(model, costed.adapter, any_base=any_base)
    try:
        measured = [scorer.scores().mean_loss for scorer in scorers()]
    finally:
        detach(model)
    alone, equal, *singles = starts
    return Composition(
        costed,
        dict(zip(adapters, found.best.weights, strict=True)),
        alone,
        equal,
        dict(zip(adapters, singles, strict=True)),
        Losses(measured[0], measured[1] if held_out is not None else None),
        found,
    )


def _with_method(adapter: Adapter, settings: WeightSearch, examples: TextDataset) -> Adapter:
    """The adapter, whose lineage says how its weights were found."""
    lineage = adapter.provenance["lineage"]
    method = {
        "name": "lorahub",
        "budget": settings.evaluations(len(lineage["inputs"])),
        "bounds": list(settings.bounds),
        "penalty": settings.penalty,
        "rows": len(examples),
        "examples": _digest(examples),
    }
    lineage = {**lineage, "method": method}
    return replace(adapter, provenance={**adapter.provenance, "lineage": lineage})


def _digest(dataset: TextDataset) -> str:
    """sha256 over the tokens and labels of the rows, in their order."""
    state = hashlib.sha256()
    for example in dataset.examples:
        state.update(array("q", [len(example.input_ids), *example.input_ids, *example.labels]).tobytes())
    return state.hexdigest()


def _require_apart(examples: TextDataset, held_out: TextDataset | None) -> None:
    """Raises DataError if a held-out row is among the examples."""
    seen = {(tuple(example.input_ids), tuple(example.labels)) for example in examples.examples}
    others = held_out.examples if held_out is not None else []
    shared = sum((tuple(example.input_ids), tuple(example.labels)) in seen for example in others)
    if shared:
        raise DataError(
            f"held out: {shared} of {len(others)} rows are among the examples, which are chosen for; leave them out"
        )
