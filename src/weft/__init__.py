"""weft: plan, train, look at, combine, merge, switch and serve LoRA adapters.

The main path, on any `nn.Module`:

    weft.attach(model, weft.LoRAConfig(rank=16))
    ...                                             # train weft.trainable_parameters(model)
    weft.collect(model).save("my-adapter")
    weft.attach(other_model, weft.load("my-adapter"))
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from weft import errors
from weft.errors import WeftError

if TYPE_CHECKING:
    from weft.adapter import Adapter, Layout, inner, weighted_sum
    from weft.algebra import combine, resize
    from weft.bundled import bundled_base
    from weft.config import (
        Bottleneck,
        DoRA,
        Gaussian,
        Kaiming,
        LoRA,
        LoRAConfig,
        PiSSA,
        Prefix,
        Prompt,
        RankStabilized,
        Standard,
    )
    from weft.formats import load
    from weft.linalg import LowRank
    from weft.model.attach import attach, detach
    from weft.model.collect import collect
    from weft.model.extract import extract
    from weft.model.merge import MergeReport, merge, merged, unmerge
    from weft.model.plan import Plan, PlannedCompanion, PlannedModule, plan
    from weft.model.prompt import with_prompt
    from weft.model.state import adapter_names, base_fingerprint, trainable_parameters
    from weft.model.switch import activate, active

__version__ = version("weft")

__all__ = [
    "Adapter",
    "Bottleneck",
    "DoRA",
    "Gaussian",
    "Kaiming",
    "Layout",
    "LoRA",
    "LoRAConfig",
    "LowRank",
    "MergeReport",
    "PiSSA",
    "Plan",
    "PlannedCompanion",
    "PlannedModule",
    "Prefix",
    "Prompt",
    "RankStabilized",
    "Standard",
    "WeftError",
    "activate",
    "active",
    "adapter_names",
    "attach",
    "base_fingerprint",
    "bundled_base",
    "collect",
    "combine",
    "detach",
    "errors",
    "extract",
    "inner",
    "load",
    "merge",
    "merged",
    "plan",
    "resize",
    "trainable_parameters",
    "unmerge",
    "weighted_sum",
    "with_prompt",
]

# torch takes seconds to import, and `weft --help` does not need it: a name is fetched when it is first asked for.
_HOMES = {
    "weft.adapter": {"Adapter", "Layout", "inner", "weighted_sum"},
    "weft.algebra": {"combine", "resize"},
    "weft.bundled": {"bundled_base"},
    "weft.config": {
        "Bottleneck",
        "DoRA",
        "Gaussian",
        "Kaiming",
        "LoRA",
        "LoRAConfig",
        "PiSSA",
        "Prefix",
        "Prompt",
        "RankStabilized",
        "Standard",
    },
    "weft.formats": {"load"},
    "weft.linalg": {"LowRank"},
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "weft.model")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
