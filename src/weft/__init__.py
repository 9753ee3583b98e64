"""weft: plan, train, look at, combine, merge, switch and serve LoRA adapters.

import weft

weft.attach(model, weft.LoRAConfig(rank=16))
...                                             # train weft.trainable_parameters(model)
weft.collect(model).save("my-adapter")
weft.attach(other_model, weft.load("my-adapter"))
"""

from importlib.metadata import version

from weft import errors
from weft.adapter import Adapter, Layout
from weft.bundled import bundled_base
from weft.config import Gaussian, Kaiming, LoRA, LoRAConfig, PiSSA, RankStabilized, Standard
from weft.errors import WeftError
from weft.formats import load
from weft.linalg import LowRank
from weft.model import (
    MergeReport,
    Plan,
    PlannedModule,
    activate,
    active,
    adapter_names,
    attach,
    base_fingerprint,
    collect,
    detach,
    merge,
    merged,
    plan,
    trainable_parameters,
    unmerge,
)

__version__ = version("weft")

__all__ = [
    "Adapter",
    "Gaussian",
    "Kaiming",
    "Layout",
    "LoRA",
    "LoRAConfig",
    "LowRank",
    "MergeReport",
    "PiSSA",
    "Plan",
    "PlannedModule",
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
    "detach",
    "errors",
    "load",
    "merge",
    "merged",
    "plan",
    "trainable_parameters",
    "unmerge",
]

