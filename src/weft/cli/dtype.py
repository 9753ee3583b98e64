"""The dtypes that tensors can be written as."""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Dtype(StrEnum):
    """A floating-point dtype by its name in torch."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def of_torch(self) -> "torch.dtype":
        """torch's own."""
        import torch

        dtype = getattr(torch, self.value)
        assert isinstance(dtype, torch.dtype)
        return dtype
