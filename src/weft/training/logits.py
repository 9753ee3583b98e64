"""Logits only where a label is: the output head is skipped at positions whose prediction nobody scores.

With prompts of 90 tokens and answers of 10, nine tenths of the head's work, and of the memory for logits, are for
nothing. transformers' models take the positions to keep, and their loss takes labels that are shifted already.
"""

import inspect
from typing import Any

from torch import Tensor, nn

from weft.data.text import IGNORED


def keeps_logits(model: nn.Module) -> bool:
    """Whether a model is one of transformers' own that can be told at which positions to compute logits.

    One from elsewhere may take the argument and shift the labels itself.
    """
    own = type(model).__module__.startswith("transformers.")
    return own and "logits_to_keep" in inspect.signature(model.forward).parameters


def learned_positions(labels: Tensor) -> Tensor:
    """The positions t of a batch at which some row's label t + 1 is learned.

    Args:
        labels: (rows, T), `IGNORED` where no loss is taken.

    Returns:
        (k), ascending, int64; never empty, so that there is a graph to go back through.
    """
    positions = (labels[:, 1:] != IGNORED).any(0).nonzero().view(-1)  # (k)
    return positions if positions.numel() else labels.new_zeros(1)


def with_learned_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch that asks for the logits at the learned positions only, with the labels that belong to them."""
    positions = learned_positions(inputs["labels"])
    return {**inputs, "logits_to_keep": positions, "shift_labels": inputs["labels"][:, positions + 1].contiguous()}
