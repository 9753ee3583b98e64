"""Patterns that name modules: a path or its end, a glob, or a regular expression (see `LoRAConfig`)."""

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import cache

from weft.errors import ConfigError, TargetError, nearest


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        try:
            return re.compile(f"(?:{pattern[3:]})\\Z")
        except re.error as error:
            raise ConfigError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
    if any(mark in pattern for mark in "*?["):
        return re.compile(translate(pattern))
    return re.compile(rf"(?:.*\.)?{re.escape(pattern)}\Z")


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names the module at `path`."""
    return _compiled(pattern).match(path) is not None


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first of several patterns that names `path`."""
    for pattern in patterns:
        if matches(pattern, path):
            return pattern
    return None


def block_index(path: str) -> int | None:
    """The index of the block that a module stands in: the first whole number among its path's parts."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def nothing_matched(setting: str, pattern: str, paths: Iterable[str]) -> TargetError:
    """The error for a pattern that named none of `paths`, with the nearest names that are there."""
    endings = {".".join(parts[i:]) for parts in (path.split(".") for path in paths) for i in range(len(parts))}
    hint = nearest(pattern, sorted(endings)) or f"; the modules are called {', '.join(_last_names(paths))}"
    return TargetError(f"{setting}: {pattern!r} matches nothing{hint}")


def _last_names(paths: Iterable[str]) -> list[str]:
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    return [name for name in names if name and not name.isdigit()][:12]


def open_index(path: str) -> str:
    """A module's path with its block's index, and an expert's, left open: ``model.layers.*.self_attn.q_proj``."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
