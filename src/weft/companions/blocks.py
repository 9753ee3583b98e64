"""Attention and feed-forward blocks, found by the names that models give to their layers.

A name is the path of a layer from the block on: BERT's query projection is ``attention.self.query``, its output
projection ``attention.output.dense``, and so the pair is (``self.query``, ``output.dense``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from weft.nn import layer_kind_of

_ATTENTION = (
    ("q_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, T5Gemma, ViT
    ("q_proj", "out_proj"),  # Whisper, BART, OPT, CLIP, Wav2Vec2
    ("q_proj", "dense"),  # Phi
    ("self.query", "output.dense"),  # BERT, RoBERTa, ELECTRA
    ("self.query_proj", "output.dense"),  # DeBERTa
    ("attention.query", "output.dense"),  # BEiT, DINO
    ("q_lin", "out_lin"),  # DistilBERT
    ("q", "o"),  # T5, MPNet
    ("to_q", "to_out.0"),  # diffusers
    ("wq", "wo"),
    ("q_attn", "c_proj"),  # the cross-attention of GPT-2
    ("c_attn", "c_proj"),  # GPT-2: queries, keys and values
    ("qkv_proj", "o_proj"),  # Phi-3, likewise
    ("query_key_value", "dense"),  # GPT-NeoX, BLOOM: head by head
)
_FEED_FORWARD = (
    ("up_proj", "down_proj"),  # Llama, Mistral, Qwen, Gemma
    ("gate_up_proj", "down_proj"),  # Phi-3
    ("fc1", "fc2"),  # Whisper, BART, OPT, CLIP, ViT
    ("intermediate.dense", "output.dense"),  # BERT, RoBERTa
    ("intermediate_dense", "output_dense"),  # Wav2Vec2
    ("lin1", "lin2"),  # DistilBERT
    ("wi", "wo"),  # T5
    ("wi_0", "wo"),  # T5 v1.1
    ("net.0.proj", "net.2"),  # diffusers
    ("c_fc", "c_proj"),  # GPT-2
    ("dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX, BLOOM
    ("w1", "w2"),
)


@dataclass(frozen=True)
class Block:
    """A block, by the paths of its first and its last linear layer: of an attention block the query projection."""

    first: str
    last: str


def attention_blocks(modules: Mapping[str, nn.Module], names: tuple[str, str] | None = None) -> list[Block]:
    """The attention blocks of a base.

    Args:
        modules: the base's, by path.
        names: of the query and output projections; None for those that are known.
    """
    return list(_blocks(modules, _ATTENTION if names is None else (names,)))


def feed_forward_blocks(modules: Mapping[str, nn.Module]) -> list[Block]:
    """The feed-forward blocks of a base."""
    return list(_blocks(modules, _FEED_FORWARD))


def _blocks(modules: Mapping[str, nn.Module], pairs: Iterable[tuple[str, str]]) -> Iterator[Block]:
    linear = [path for path, module in modules.items() if is_linear(module)]
    seen: set[str] = set()
    for first in linear:
        for start, end in pairs:
            block = first.removesuffix(start)
            if block != first and (not block or block.endswith(".")):
                last = block + end
                if last not in seen and last in modules and is_linear(modules[last]):
                    seen.add(last)
                    yield Block(first, last)
                    break


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of a kind that weft knows."""
    kind = layer_kind_of(module)
    return kind is not None and kind.layout(module).kind == "linear"


def sizes(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    kind = layer_kind_of(module)
    assert kind is not None
    return kind.shape(module)
