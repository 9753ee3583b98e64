"""The methods that can be compared: each a named change of a run's settings. Imports neither torch nor transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from weft.errors import ConfigError
from weft.registry import Registry
from weft.training.config import RunConfig


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning.

    Attributes:
        title: what it is, for people.
        settings: what it changes of a run's settings; the others stay as they are.
        rate: a usual learning rate of it, over LoRA's.
        has_rank: whether the run's rank counts.
        is_full: full fine-tuning, which trains the base itself and is no adapter.
    """

    title: str
    settings: Mapping[str, Any]
    rate: float = 1.0
    has_rank: bool = False
    is_full: bool = False


methods: Registry[Method] = Registry("method")

_NO_FACTORS = {"targets": (), "nested": False}

methods.register("lora")(
    Method("LoRA (Hu et al., 2021)", {"variant": "lora", "companions": ()}, has_rank=True)
)  # fmt: skip
methods.register("dora")(
    Method("DoRA (Liu et al., 2024)", {"variant": "dora", "companions": ()}, has_rank=True)
)  # fmt: skip
methods.register("lora+prefix")(
    Method("LoRA and a prefix", {"variant": "lora", "companions": ("prefix",), "nested": False}, has_rank=True)
)
methods.register("prefix")(
    Method("prefix tuning (Li and Liang, 2021)", {**_NO_FACTORS, "companions": ("prefix",)}, rate=10)
)
methods.register("prompt")(
    Method("prompt tuning (Lester et al., 2021)", {**_NO_FACTORS, "companions": ("prompt",)}, rate=10)
)
methods.register("bottleneck")(
    Method("bottleneck adapters (Houlsby et al., 2019)", {**_NO_FACTORS, "companions": ("bottleneck",)})
)
methods.register("bitfit")(
    Method("biases alone (BitFit, Ben Zaken et al., 2022)", {**_NO_FACTORS, "companions": (), "bias": "all"}, rate=3)
)
methods.register("full")(
    Method("full fine-tuning", {"companions": (), "nested": False}, rate=0.1, is_full=True)
)  # fmt: skip

BASE = "base"  # the row of the base alone


@dataclass(frozen=True)
class Candidate:
    """A method, at a rank if it has one; `name` is how it is written: ``lora@4``, ``prefix``."""

    name: str
    method: Method
    rank: int | None

    @classmethod
    def all_of(cls, words: Sequence[str], ranks: Sequence[int], default: int) -> list[Self]:
        """The candidates that words such as ``lora``, ``lora@4`` and ``full`` name.

        Args:
            words: names of methods, some with their rank.
            ranks: the ranks of those methods that have one and do not say it; none for `default`.
            default: the run's own.

        Raises:
            ConfigError: no such method, a rank that is none, a method that has no rank, or the same twice.
        """
        found: dict[str, Self] = {}
        for word in words:
            name, at, number = word.partition("@")
            method = methods[name]
            if at and not method.has_rank:
                raise ConfigError(f"methods: {word!r}: {name} has no rank; write {name!r}")
            if at and not (number.isdigit() and int(number)):
                raise ConfigError(f"methods: {word!r}: expected a rank such as {name}@4")
            of_this = [int(number)] if at else list(ranks) or [default] if method.has_rank else [None]
            for rank in of_this:
                label = name if rank is None else f"{name}@{rank}"
                if label in found:
                    raise ConfigError(f"methods: {label} is named twice")
                found[label] = cls(label, method, rank)
        if not found:
            raise ConfigError(f"methods: name some of {', '.join(methods)}")
        return list(found.values())

    def settings(self, config: RunConfig, rate: float, seed: int) -> RunConfig:
        """A run's settings, changed to this candidate's."""
        changes = {**self.method.settings, "learning_rate": rate, "seed": seed}
        if self.rank is not None:
            changes["rank"] = self.rank
        return config.with_settings(changes)
