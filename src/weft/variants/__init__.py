"""What an adapter does with a layer. One file a variant; each registers its rule for its type in `weft.config`."""

from weft.variants import lora
from weft.variants.rule import rule_for

__all__ = ["lora", "rule_for"]
