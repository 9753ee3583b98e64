"""Prefix tuning, as gated attention to learned keys and values beside the block's own; see `weft.config.Prefix`.

It reads the queries where the query projection answers (before any rotation or normalisation of them) and adds to
what the output projection reads. So it knows of no mask, position or cache, and goes with each way to compute the
block's own attention.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from weft.companions.blocks import Block, attention_blocks, sizes
from weft.companions.part import part_for
from weft.config import Companion, Prefix
from weft.errors import TargetError
from weft.nn import CompanionLayer, CompanionPart, Site

# How attention modules call the size of a head, and the number of heads.
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
_QUERIES_FIRST = ("c_attn", "qkv_proj")  # fused projections that answer with all queries first


@dataclass(frozen=True, eq=False)
class AttentionSite(Site):
    """An attention block, whose output projection is the site's layer.

    Attributes:
        query: its query projection.
        heads: H.
        width: H d, of what the output projection reads.
    """

    query: nn.Module
    heads: int
    width: int


class PrefixLayer(CompanionLayer):
    """Adds each active adapter's attention to its prefix to what an output projection reads."""

    def hooks(self, site: Site) -> Iterator[RemovableHandle]:
        assert isinstance(site, AttentionSite)
        yield site.query.register_forward_hook(self.remember)  # after all others: the queries as the block gets them
        yield site.layer.register_forward_pre_hook(self.before, prepend=True)

    def remember(self, query: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keeps the queries, (..., T, H d) or with more behind, until the output projection is called."""
        if self.active:
            self.__dict__["queries"] = output

    def before(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """What the output projection is to read instead."""
        if not self.active:
            return None
        x, *others = inputs
        return (self(x, self.__dict__.pop("queries")), *others)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """x (..., T, H d) with what the heads find in the prefixes."""
        for part, scale in self.parts():
            x = torch.add(x, part(queries).reshape(x.shape).to(x.dtype), alpha=scale)
        return x


class PrefixPart(CompanionPart):
    """keys and values (H, length, d), and gate (H)."""

    layer_type = PrefixLayer
    keys: Tensor
    values: Tensor
    gate: Tensor

    @classmethod
    def sites(cls, settings: Companion, modules: Mapping[str, nn.Module]) -> dict[str, Site]:
        assert isinstance(settings, Prefix)
        names = None if settings.query is None or settings.output is None else (settings.query, settings.output)
        blocks = attention_blocks(modules, names)
        if not blocks:
            what = "known query and output projections" if names is None else f"linear layers {names[0]} and {names[1]}"
            raise TargetError(
                f"prefix: no module has {what}; name those of this model, from the module on that holds both, with "
                'Prefix(query="self.query", output="output.dense")'
            )
        return {block.last: _site(block, modules, settings.heads) for block in blocks}

    @classmethod
    def shapes(cls, settings: Companion, site: Site) -> dict[str, tuple[int, ...]]:
        assert isinstance(settings, Prefix)
        assert isinstance(site, AttentionSite)
        table = (site.heads, settings.length, site.width // site.heads)
        return {"keys": table, "values": table, "gate": (site.heads,)}

    def start(self, site: Site | None) -> None:
        """Keys and values of size 1, as those of normalised states are about, behind gates that are shut."""
        nn.init.normal_(self.keys)
        nn.init.normal_(self.values)
        nn.init.zeros_(self.gate)

    def forward(self, queries: Tensor) -> Tensor:
        """(..., T, H d) from queries of that shape, or with more behind them."""
        heads, length, size = self.keys.shape
        q = queries[..., : heads * size]
        q = q.reshape(*q.shape[:-1], heads, size).transpose(-3, -2)  # (..., H, T, d)
        K, V = (table.to(q.dtype).expand(*q.shape[:-2], length, size) for table in (self.keys, self.values))
        found = F.scaled_dot_product_attention(q, K, V)
        return (self.gate.to(found.dtype)[:, None, None] * found).transpose(-3, -2).flatten(-2)


@part_for.register
def _(settings: Prefix) -> type[CompanionPart]:
    return PrefixPart


def _site(block: Block, modules: Mapping[str, nn.Module], heads: int | None) -> AttentionSite:
    queries, (_, width) = sizes(modules[block.first])[0], sizes(modules[block.last])
    name = block.first.rpartition(".")[2]
    if queries != width and not (name in _QUERIES_FIRST and queries > width):
        raise TargetError(
            f"prefix: {block.first!r} gives {queries} numbers and {block.last!r} reads {width}, so that it cannot be "
            "told which of them are the queries of which head; use another companion, or name the right projections "
            "with Prefix(query=..., output=...)"
        )
    holder = modules[block.first.rpartition(".")[0]]
    found = heads or _heads(holder, width)
    if found is None or width % found:
        raise TargetError(
            f"prefix: the {width} numbers that {block.last!r} reads are of "
            f"{'an unknown number of' if found is None else found} heads; give their number, Prefix(heads=...)"
        )
    return AttentionSite(block.last, modules[block.last], modules[block.first], found, width)


def _heads(module: nn.Module, width: int) -> int | None:
    """The number of heads that an attention module says it has."""
    for name in _HEAD_SIZE:
        size = getattr(module, name, None)
        if isinstance(size, int) and size > 0:
            return width // size if width % size == 0 else None
    return next((heads for name in _HEADS if isinstance(heads := getattr(module, name, None), int)), None)
