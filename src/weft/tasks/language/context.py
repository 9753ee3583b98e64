"""How many tokens of a row the base's context holds, beside a prompt that is to be learned."""

from weft.errors import ConfigError
from weft.training.config import RunConfig


def room(config: RunConfig, context: int | None) -> int | None:
    """The longest row in tokens, without the prompt; None where the context has no limit.

    Raises:
        ConfigError: the prompt leaves no room for a row.
    """
    if context is None or not config.prompt_length:
        return context
    if context - config.prompt_length < 2:
        raise ConfigError(
            f"companions: a prompt of {config.prompt_length} leaves no room for a row in the base's context "
            f"({context} tokens); shorten it"
        )
    return context - config.prompt_length


def too_long_rows(max_length: int, config: RunConfig, longest: int) -> ConfigError:
    """Of a `max_length` above what `room` allows."""
    beside = f" beside a prompt of {config.prompt_length}" if config.prompt_length else ""
    return ConfigError(f"max_length: {max_length} tokens are more than the base's context holds{beside} ({longest})")
