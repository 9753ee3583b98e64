"""Which adapters the words on a command line mean: paths first, then names in the library."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ConfigError, FormatError, nearest

if TYPE_CHECKING:
    from weft.library import Manifest


def adapter_path(path: Path) -> Path:
    """Where the adapter is: the path itself, in a run's folder the adapter that the run kept, or else the library's.

    Args:
        path: as it was typed. What is no path may be a name in the library, or the beginning of a digest there.

    Raises:
        FormatError: there is no such thing; the message has the nearest of both.
        ConfigError: it could be several adapters of the library.
    """
    if path.exists():
        return path / "adapter" if (path / "adapter").is_dir() else path
    from weft.library import Library

    reason = ""
    if _may_be_name(path):
        library = Library()
        try:
            return library.folder(str(path))
        except ConfigError as error:
            reason = f" And {error}" if library.path.exists() else ""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside) or ("." if reason else "")
    raise FormatError(f"there is no adapter at {path}: no such file or folder{near}{reason}")


def named_paths(values: Sequence[str]) -> dict[str, Path]:
    """Adapter name -> path, from PATH, a name in the library, and NAME=EITHER.

    A path gets the last of its parts that is not taken for a name, what is in the library its name there.

    Raises:
        ConfigError: two of one name.
        FormatError: there is no such adapter.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        path = Path(rest if equals else value)
        if not equals:
            kept = _in_library(path)
            # A run keeps its adapter in a folder of that name: the run's own name says more.
            parts = [_as_name(part) for part in reversed(path.absolute().parts) if part != "adapter"]
            free = next((part for part in parts if part and part not in found), "adapter")
            name = free if kept is None else _as_name(kept.name)
        if name in found:
            raise ConfigError(f"adapter: two are called {name!r}; name them: --adapter NAME=PATH")
        found[name] = path
    return {name: adapter_path(path) for name, path in found.items()}


def _in_library(path: Path) -> "Manifest | None":
    """What the library says of an adapter that is named so and is no path."""
    if path.exists() or not _may_be_name(path):
        return None
    from weft.library import Library

    return Library().get(str(path))


def _may_be_name(path: Path) -> bool:
    return len(path.parts) == 1 and path.name not in ("", "..")


def _as_name(part: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in part).strip("-")
