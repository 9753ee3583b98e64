"""`Manifest`: what a library says of one adapter. Plain values; imports no torch."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a library says of one adapter.

    Attributes:
        digest: of the adapter's value (see `weft.digest`): its address.
        name: what it is called in the library.
        base: the base's name as it was recorded, such as a hub id.
        fingerprint: the base's structure (see `weft.fingerprint`), if it is known.
        variant: the variant's name.
        modules: how many modules it changes.
        targets: the last parts of their paths.
        ranks: the lowest and the highest rank.
        parameters: trained values.
        nbytes: of all its tensors.
        norm: the Frobenius norm of its change of all weights together.
        task: what it is for.
        data: what it was trained on: a path or hub id.
        data_sha256: of that file, if it could be read and had not changed since.
        metrics: name -> value.
        licence: under which it may be used.
        tags: any words, sorted.
        description: any text.
        created: when it was made, in UTC, as far as known.
        added: when it came into the library, in UTC.
        provenance: as the adapter brought it, with the lineage of one that was made from others.
    """

    digest: str
    name: str
    base: str | None = None
    fingerprint: str | None = None
    variant: str = "lora"
    modules: int = 0
    targets: tuple[str, ...] = ()
    ranks: tuple[int, int] | None = None
    parameters: int = 0
    nbytes: int = 0
    norm: float = 0.0
    task: str | None = None
    data: str | None = None
    data_sha256: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    created: str | None = None
    added: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_dict`; raises TypeError or KeyError where the values are not such."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)


def checked_name(name: str) -> str:
    """The name, if an adapter in a library may have it.

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name: expected up to 100 letters, digits and . _ + -, with a letter or digit first, found {name!r}"
        )
    return name


def as_name(text: str) -> str:
    """The nearest that may be a name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("._+-")[:100]


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, sorted, each once.

    Raises:
        ConfigError: one is empty, or has a comma or white space in it.
    """
    if isinstance(tags, str):
        raise ConfigError(f"tags: expected several, found {tags!r}; write [{tags!r}]")
    for tag in tags:
        if not tag or re.search(r"[\s,]", tag):
            raise ConfigError(f"tags: expected words without commas and white space, found {tag!r}")
    return tuple(sorted(set(tags)))
