"""The code of a companion, by the type of its configuration."""

from functools import singledispatch

from weft.config import Companion
from weft.errors import ConfigError
from weft.nn import CompanionPart


@singledispatch
def part_for(settings: Companion) -> type[CompanionPart]:
    """The module that carries a companion out; a companion registers its own: ``@part_for.register``.

    Raises:
        ConfigError: none is registered for the type of `settings`.
    """
    raise ConfigError(f"no code is registered for the companion {settings!r}; register it with @part_for.register")
