"""The rule of a variant, by its type."""

from functools import singledispatch

from weft.config import Variant
from weft.errors import ConfigError
from weft.nn import VariantRule


@singledispatch
def rule_for(variant: Variant) -> VariantRule:
    """The rule that carries out a variant; a variant registers its own: ``@rule_for.register``.

    Raises:
        ConfigError: none is registered for the type of `variant`.
    """
    raise ConfigError(f"no code is registered for the variant {variant!r}; register it with @rule_for.register")
