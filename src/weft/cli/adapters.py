"""Which adapters the words on a command line mean."""

from collections.abc import Sequence
from pathlib import Path

from weft.errors import ConfigError


def adapter_path(path: Path) -> Path:
    """Where the adapter is: the path itself, or in a run's folder the adapter that the run kept."""
    return path / "adapter" if (path / "adapter").is_dir() else path


def named_paths(values: Sequence[str]) -> dict[str, Path]:
    """Adapter name -> path, from PATH and NAME=PATH. A path gets the last of its parts that is not taken for a name.

    Raises:
        ConfigError: two of one name.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        path = Path(rest if equals else value)
        if not equals:
            # A run keeps its adapter in a folder of that name: the run's own name says more.
            parts = [_as_name(part) for part in reversed(path.absolute().parts) if part != "adapter"]
            name = next((part for part in parts if part and part not in found), "adapter")
        if name in found:
            raise ConfigError(f"adapter: two are called {name!r}; name them: --adapter NAME=PATH")
        found[name] = adapter_path(path)
    return found


def _as_name(part: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in part).strip("-")
