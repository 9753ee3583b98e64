"""Packed batches: the rows of a batch end to end in one, without padding."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from weft.data.prompts import Lay, Rows, lay_none
from weft.data.text import IGNORED


@dataclass(frozen=True)
class PackedCollator:
    """Lays the rows of a batch end to end; `lay` puts a prompt into each before.

    Returns, for rows of L_1 ... L_S tokens and T of these together:
        input_ids: (1, T), int64.
        position_ids: (1, T), int64; they begin again at 0 with each row.
        labels: (1, T), int64; `IGNORED` at the first token of each row, which nothing comes before.
        attention_mask: (1, 1, 1, S + 1), int32: no mask, but where the rows begin, and T. Only attention that knows
            of it (`weft.training.packing`) may be given it; any other refuses its dtype.
    """

    lay: Lay = lay_none

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        rows = self.lay(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
            "labels": torch.tensor([[label for row in rows for label in (IGNORED, *row["labels"][1:])]]),
            "attention_mask": torch.tensor([[[[0, *accumulate(lengths)]]]], dtype=torch.int32),
        }
