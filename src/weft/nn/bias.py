"""A trained bias on a module that has no factors (``bias="all"``): layer norms, and layers left out of the targets."""

from torch import Tensor, nn

from weft.nn.bank import Adapted
from weft.nn.linear import LoRATransposedLinear

# Modules whose bias is the last thing added to the output, by where the output's channels are: last, second, or
# before the kernel's dimensions (a convolution's input may come without a batch).
_LAST = (nn.Linear, nn.LayerNorm)
_SECOND = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TrainedBias(nn.Module):
    """One adapter's bias on one module, replacing the base's."""

    def __init__(self, bias: Tensor, trainable: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=trainable)


class BiasLayer(Adapted):
    """A base module whose bias b becomes b' under an adapter: ``output = base(x) + (b' - b)``."""

    bias: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The base's output with the active adapters' biases."""
        output: Tensor = super().forward(input)
        for name, scale in self.active.items():
            trained = self.adapters[name]
            assert isinstance(trained, TrainedBias)
            change = (trained.bias - self.bias).to(output.dtype)
            output = output + scale * change.reshape(*change.shape, *[1] * self._trailing(output))
        return output

    def _trailing(self, output: Tensor) -> int:
        """How many dimensions of the output follow that of its channels."""
        if isinstance(self, _CONV):
            return len(self.kernel_size)
        return output.ndim - 2 if isinstance(self, _SECOND) else 0

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether the module's bias is simply added to its output, so that it can be trained beside the base's."""
        return isinstance(module, _LAST + _SECOND + _CONV) or LoRATransposedLinear.serves(module)
