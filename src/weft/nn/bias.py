"""A trained bias on a module that has no factors (``bias="all"``): layer norms, and layers left out of the targets."""

from torch import Tensor, nn

from weft.nn.bank import Adapted

# Modules whose bias is the last thing added to the output, by where the output's channels are.
_LAST = (nn.Linear, nn.LayerNorm)
_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
            trailing = output.ndim - 2 if isinstance(self, _FIRST) else 0
            output = output + scale * change.reshape(*change.shape, *[1] * trailing)
        return output

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether the module's bias is simply added to its output, so that it can be trained beside the base's."""
        return isinstance(module, _LAST + _FIRST)
