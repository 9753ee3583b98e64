"""Tiny real models with each companion, for the laws: decoder, encoder, both, speech, and a fused projection."""

from dataclasses import dataclass

import torch
import transformers as t
from families import FAMILIES, Family
from torch import Tensor, nn

import weft
from weft import Bottleneck, LoRAConfig, Prefix, Prompt
from weft.config import Companion

NAMES = ("llama", "bert", "t5", "whisper", "gpt2")
FAMILY = {family.name: family for family in FAMILIES if family.name in NAMES}
COMPANIONS = (Prefix(length=3), Bottleneck(width=4), Prompt(length=3))


@dataclass(frozen=True)
class Case:
    """A companion on a model."""

    family: Family
    companion: Companion

    @property
    def name(self) -> str:
        """How the test is called."""
        return f"{self.family.name}_{self.companion.name}"

    def model(self, dtype: torch.dtype = torch.float32) -> t.PreTrainedModel:
        """A fresh base, always the same."""
        return self.family.base().to(dtype)

    def alone(self) -> LoRAConfig:
        """The companion without factors."""
        return LoRAConfig(targets=(), companions=(self.companion,))

    def with_factors(self) -> LoRAConfig:
        """The companion on layers that have factors too."""
        return LoRAConfig(rank=2, targets="all-linear", companions=(self.companion,))

    def answer(self, model: nn.Module, *, prompted: bool = False) -> Tensor:
        """What the model answers to the family's batch; with its prompt laid before the ids, if asked for."""
        batch = {
            key: value.to(model.dtype) if value.is_floating_point() else value
            for key, value in self.family.batch().items()
        }
        if prompted and isinstance(self.companion, Prompt):
            batch |= self.laid(model, batch)
        with torch.no_grad():
            return model(**batch).logits.clone()

    def laid(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch's ids with the prompt before them."""
        key = "input_ids" if "input_ids" in batch else "decoder_input_ids"
        return {key: torch.tensor([weft.with_prompt(model, row, "default") for row in batch[key].tolist()])}


CASES = tuple(Case(family, companion) for family in FAMILY.values() for companion in COMPANIONS)
