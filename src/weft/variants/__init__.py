"""What an adapter does with a layer. One file a variant; each registers its rule for its type in `weft.config`."""

from weft.variants import dora, lora
from weft.variants.rule import rule_for

__all__ = ["dora", "lora", "rule_for"]
