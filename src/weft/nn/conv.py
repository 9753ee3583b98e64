"""Convolutions in 1, 2 and 3 dimensions, with any groups, stride, dilation, padding and padding mode.

The kernel (out, in/groups, *k), flattened to (out, in/groups * prod(k)), gets the low-rank change. The
branch is a convolution with A that takes every geometry argument from the base, then a 1x1 one with B.
"""

from torch import Tensor, nn

from weft import ops
from weft.adapter import Layout
from weft.nn.base import Factors, LoRALayer, register_layer_kind


@register_layer_kind
class LoRAConv(LoRALayer):
    """y = conv(x, W + s reshape(B A)) + b."""

    kind = "conv"
    groups: int
    kernel_size: tuple[int, ...]

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not isinstance(
            module, nn.LazyConv1d | nn.LazyConv2d | nn.LazyConv3d
        )

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        own = type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
        if own and not isinstance(module, LoRALayer):
            return f"its class {type(module).__name__} has a forward of its own"
        return None

    @classmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module.weight, Tensor)
        return module.weight.shape[0], module.weight[0].numel()

    @classmethod
    def layout(cls, module: nn.Module) -> Layout:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return Layout("conv", tuple(module.kernel_size), module.groups)

    @classmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        assert isinstance(module.weight, Tensor)
        return module.weight.flatten(1)

    @classmethod
    def as_weight(cls, module: nn.Module, matrix: Tensor) -> Tensor:
        assert isinstance(module.weight, Tensor)
        return matrix.reshape(module.weight.shape)

    def as_bias(self, bias: Tensor) -> Tensor:
        return bias.reshape(-1, *[1] * len(self.kernel_size))

    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        kernel = A.reshape(A.shape[0], -1, *self.kernel_size)
        return ops.conv(x, kernel, B, self.groups, self._convolve)

    def add_product(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        y = self.base_output(x) if output is None else output
        A, B = factors.pair()
        kernel = A.reshape(A.shape[0], -1, *self.kernel_size)
        return ops.add_conv(y, self.branch_input(x, factors), kernel, B, scaling, self.groups, self._convolve)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        assert isinstance(self, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        output: Tensor = self._conv_forward(x, weight, None)
        return output
