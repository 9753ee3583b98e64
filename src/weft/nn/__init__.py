"""Adapted layers: a base layer, the same object, given in place a class that adds a bank of adapters.

`bank.py` holds what all adapted modules share, `base.py` the one forward of LoRA layers; each layer
kind is one file that says how its product with B A is computed and how B A lies in its weight.
`companion.py` is what small modules beside the base's layers have in common.
"""

from weft.nn.bank import Adapted, unweave, weave
from weft.nn.base import Factors, LoRALayer, VariantRule, layer_kind_of, layer_kinds
from weft.nn.bias import BiasLayer, TrainedBias
from weft.nn.companion import CompanionLayer, CompanionPart, Site
from weft.nn.conv import LoRAConv
from weft.nn.embedding import LoRAEmbedding
from weft.nn.linear import LoRALinear, LoRATransposedLinear
from weft.nn.quantized import EightBit, FourBit
from weft.nn.replaced import ReplacedModule
from weft.nn.storage import Storage, register_storage, storage_of, storages

__all__ = [
    "Adapted",
    "BiasLayer",
    "CompanionLayer",
    "CompanionPart",
    "EightBit",
    "Factors",
    "FourBit",
    "LoRAConv",
    "LoRAEmbedding",
    "LoRALayer",
    "LoRALinear",
    "LoRATransposedLinear",
    "ReplacedModule",
    "Site",
    "Storage",
    "TrainedBias",
    "VariantRule",
    "layer_kind_of",
    "layer_kinds",
    "register_storage",
    "storage_of",
    "storages",
    "unweave",
    "weave",
]
