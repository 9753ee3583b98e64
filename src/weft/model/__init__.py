"""The only part that touches a live model: plan, attach, switch, collect, merge, detach."""

from weft.model.attach import attach, detach
from weft.model.collect import collect
from weft.model.extract import extract
from weft.model.merge import MergeReport, merge, merged, unmerge
from weft.model.plan import Plan, PlannedCompanion, PlannedModule, plan
from weft.model.prompt import LayPrompt, prompt_ids, with_prompt
from weft.model.state import adapter_names, base_fingerprint, trainable_parameters
from weft.model.switch import activate, active

__all__ = [
    "LayPrompt",
    "MergeReport",
    "Plan",
    "PlannedCompanion",
    "PlannedModule",
    "activate",
    "active",
    "adapter_names",
    "attach",
    "base_fingerprint",
    "collect",
    "detach",
    "extract",
    "merge",
    "merged",
    "plan",
    "prompt_ids",
    "trainable_parameters",
    "unmerge",
    "with_prompt",
]
