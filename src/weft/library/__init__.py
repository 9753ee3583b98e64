"""A local library of adapters: found by text, base, task, tag and similarity, checked, and recoverable."""

import importlib
from typing import TYPE_CHECKING

from weft.library.library import Library
from weft.library.lineage import Ancestor
from weft.library.manifest import Manifest
from weft.library.place import default_place
from weft.library.similar import Found

if TYPE_CHECKING:
    from weft.library.adding import Addition
    from weft.library.verify import Problem

__all__ = ["Addition", "Ancestor", "Found", "Library", "Manifest", "Problem", "default_place"]

# These bring torch, which takes seconds to import and which finding an adapter does not need.
_HOMES = {"Addition": "weft.library.adding", "Problem": "weft.library.verify"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft.library' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
