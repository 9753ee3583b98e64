"""What an adapter was made from, as a tree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DEEPEST = 32  # a file may say anything


@dataclass(frozen=True)
class Ancestor:
    """An adapter in the lineage of another.

    Attributes:
        name: what it is called in the library, or else by those who used it.
        digest: its digest, if it was noted.
        weight: by what it was multiplied, in a combination.
        in_library: whether it is in the library now.
        operation: what made it from its own inputs, with the operation's settings; None if nothing is known.
        inputs: these.
    """

    name: str | None
    digest: str | None
    weight: float | None
    in_library: bool
    operation: str | None
    inputs: tuple["Ancestor", ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "digest": self.digest,
            "weight": self.weight,
            "in_library": self.in_library,
            "operation": self.operation,
            "inputs": [each.to_dict() for each in self.inputs],
        }


Known = Callable[[str], tuple[str, Any] | None]
"""Digest -> the adapter's name in the library and its own lineage, if it is there."""


def ancestors(digest: str, known: Known) -> Ancestor:
    """The tree that ends in an adapter of the library."""
    return _ancestor({"digest": digest}, known, _DEEPEST)


def _ancestor(said: Mapping[str, Any], known: Known, deepest: int) -> Ancestor:
    digest = said.get("digest")
    found = known(digest) if isinstance(digest, str) else None
    name, lineage = found or (said.get("name"), said.get("lineage"))
    if not isinstance(lineage, Mapping) or not deepest:
        lineage = {}
    inputs = lineage.get("inputs")
    return Ancestor(
        name=str(name) if name is not None else None,
        digest=digest if isinstance(digest, str) else None,
        weight=said["weight"] if isinstance(said.get("weight"), int | float) else None,
        in_library=found is not None,
        operation=_operation(lineage),
        inputs=tuple(
            _ancestor(each, known, deepest - 1)
            for each in (inputs if isinstance(inputs, Sequence) else ())
            if isinstance(each, Mapping)
        ),
    )


def _operation(lineage: Mapping[str, Any]) -> str | None:
    """The operation with its settings: ``combine (method linear)``."""
    if "operation" not in lineage:
        return None
    settings = {key: value for key, value in lineage.items() if key not in ("operation", "inputs")}
    return str(lineage["operation"]) + (f" ({_in_words(settings)})" if settings else "")


def _in_words(settings: Mapping[str, Any]) -> str:
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rest = {k: v for k, v in value.items() if k != "name"}
            named = f"{key} {value['name']}" if "name" in value else key
            words.append(named + (f" [{_in_words(rest)}]" if rest else ""))
        else:
            words.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(words)
