"""The option that says how a base's weights are held."""

from enum import StrEnum
from typing import Annotated

import typer

from weft.training.config import Quantize


class Quantization(StrEnum):
    """How the linear layers of a base are held."""

    none = "none"
    eight_bit = "8bit"

    @property
    def setting(self) -> Quantize:
        """As a run's settings have it."""
        return "8bit" if self is Quantization.eight_bit else "none"


QuantizeOption = Annotated[
    Quantization, typer.Option(help="Hold the base's linear layers in 8 bits (bitsandbytes), to save memory.")
]
