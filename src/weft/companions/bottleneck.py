"""Bottleneck adapters behind attention and feed-forward blocks; see `weft.config.Bottleneck`."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from weft.companions.blocks import attention_blocks, feed_forward_blocks, is_linear, sizes
from weft.companions.part import part_for
from weft.config import Bottleneck, Companion
from weft.errors import TargetError
from weft.nn import CompanionLayer, CompanionPart, Site
from weft.patterns import matches, nothing_matched

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class BottleneckLayer(CompanionLayer):
    """Adds each active adapter's bottleneck to the output of a linear layer."""

    def hooks(self, site: Site) -> Iterator[RemovableHandle]:
        yield site.layer.register_forward_hook(self.after, prepend=True)

    def after(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """What the layer is to answer instead."""
        return self(output) if self.active else None

    def forward(self, y: Tensor) -> Tensor:
        """y (..., d) and what the bottlenecks make of it."""
        changed = y
        for part, scale in self.parts():
            changed = torch.add(changed, part(y).to(y.dtype), alpha=scale)
        return changed


class BottleneckPart(CompanionPart):
    """down (width, d) and down_bias (width); up (d, width) and up_bias (d)."""

    layer_type = BottleneckLayer
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    @classmethod
    def sites(cls, settings: Companion, modules: Mapping[str, nn.Module]) -> dict[str, Site]:
        assert isinstance(settings, Bottleneck)
        if settings.after:
            return {path: Site(path, modules[path]) for path in _matching(settings.after, modules)}
        blocks = [*attention_blocks(modules), *feed_forward_blocks(modules)]
        if not blocks:
            raise TargetError(
                "bottleneck: no module has the linear layers of a known attention or feed-forward block; name the "
                'layers of this model, Bottleneck(after=("out_proj", "fc2"))'
            )
        paths = {block.last for block in blocks}
        return {path: Site(path, module) for path, module in modules.items() if path in paths}

    @classmethod
    def shapes(cls, settings: Companion, site: Site) -> dict[str, tuple[int, ...]]:
        assert isinstance(settings, Bottleneck)
        d, width = sizes(site.layer)[0], settings.width
        return {"down": (width, d), "down_bias": (width,), "up": (d, width), "up_bias": (d,)}

    def start(self, site: Site | None) -> None:
        """W_down as torch starts a linear layer, all else zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        for tensor in (self.down_bias, self.up, self.up_bias):
            nn.init.zeros_(tensor)

    def forward(self, y: Tensor) -> Tensor:
        """W_up f(W_down y + b_down) + b_up, (..., d)."""
        assert isinstance(self.settings, Bottleneck)
        down, down_bias, up, up_bias = (t.to(y.dtype) for t in (self.down, self.down_bias, self.up, self.up_bias))
        return F.linear(_ACTIVATIONS[self.settings.activation](F.linear(y, down, down_bias)), up, up_bias)


@part_for.register
def _(settings: Bottleneck) -> type[CompanionPart]:
    return BottleneckPart


def _matching(patterns: tuple[str, ...], modules: Mapping[str, nn.Module]) -> list[str]:
    linear = [path for path, module in modules.items() if path and is_linear(module)]
    for pattern in patterns:
        if not any(matches(pattern, path) for path in linear):
            raise nothing_matched("bottleneck: after", pattern, linear)
    return [path for path in linear if any(matches(pattern, path) for pattern in patterns)]
