"""What the settings that several methods share may be."""

from weft.errors import ConfigError


def check_density(density: float) -> None:
    """Raises ConfigError unless `density` is a share above 0, up to 1."""
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ConfigError(f"density: expected the share of entries to keep, above 0 and up to 1, found {density!r}")


def check_seed(seed: int) -> None:
    """Raises ConfigError unless `seed` is a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed: expected a whole number of at least 0, found {seed!r}")
