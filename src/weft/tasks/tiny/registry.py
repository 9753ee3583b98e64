"""The stand-ins by name, and where they are kept once they are made."""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from weft.model.new_folder import new_folder
from weft.registry import Registry

Build = Callable[[Path], Mapping[str, Any]]
"""Fills an empty folder, and returns the settings that it replaces: name -> value.

A `Path` among the values is one in the folder. torch's generator has been given a seed; draw from it, or from one of
your own. Write little (a base of a megabyte, some dozens of rows), and what belongs to the architecture: a stand-in for
a base has the modules of the real one, under the same names.
"""

bases: Registry[Build] = Registry("stand-in for a base", home="weft.tasks.tiny")
data: Registry[Build] = Registry("stand-in for data of the task", home="weft.tasks.tiny")

_RECORD = "stand-in.json"


def build(registry: Registry[Build], name: str) -> dict[str, Any]:
    """Makes a stand-in, the first time that it is asked for, and returns the settings that it replaces.

    It is made anew when a file beside its source, or transformers, changes; what was made before stays in the cache.

    Raises:
        ConfigError: there is none of this name; the message lists those that there are.
        FormatError: the disk did not take it.
    """
    maker = registry[name]
    digest = hashlib.sha256(f"{maker.__module__} {version('transformers')}".encode())
    for path in sorted(Path(inspect.getfile(maker)).parent.glob("*.py")):
        digest.update(path.read_bytes())
    folder = cache_place() / f"{maker.__name__}-{digest.hexdigest()[:12]}"
    if not (folder / _RECORD).is_file():
        with new_folder(folder) as fresh, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = {key: _recorded(value, fresh) for key, value in maker(fresh).items()}
            (fresh / _RECORD).write_text(json.dumps(made), encoding="utf-8")
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return {key: str(folder / each["path"]) if "path" in each else each["value"] for key, each in record.items()}


def cache_place() -> Path:
    """``weft/tiny`` in the folder in which this system keeps what can be made again (``$XDG_CACHE_HOME``)."""
    named = os.environ.get("XDG_CACHE_HOME")
    home = Path.home()
    if named:
        place = Path(named)
    elif sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        place = home / "Library" / "Caches"
    else:
        place = home / ".cache"
    return place / "weft" / "tiny"


def _recorded(value: Any, folder: Path) -> dict[str, Any]:
    """A setting as it stands in the record: a path within the folder, or a value."""
    return {"path": value.relative_to(folder).as_posix()} if isinstance(value, Path) else {"value": value}
