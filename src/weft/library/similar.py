"""The adapters whose changes are nearest to one: by sketches first, then exactly for the nearest of these."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weft.errors import ConfigError, FormatError
from weft.library.index import Conditions, Index
from weft.library.manifest import Manifest
from weft.library.query import BaseMatch

if TYPE_CHECKING:
    from weft.adapter import Adapter


@dataclass(frozen=True)
class Found:
    """An adapter that a search found.

    Attributes:
        manifest: the adapter.
        cosine: of its change and the one that was asked for; None if none was.
        standard_error: of an estimated cosine; 0 of an exact one.
    """

    manifest: Manifest
    cosine: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class Query:
    """An adapter to compare with.

    Attributes:
        sketch: its sketch; None if it changes nothing.
        adapter: gives it, if it is needed.
        bases: whose adapters can be compared with it.
        digest: its own, if it is in the library.
    """

    sketch: bytes | None
    adapter: "Callable[[], Adapter]"
    bases: Sequence[BaseMatch]
    digest: str | None = None


def nearest_first(
    index: Index,
    which: Conditions,
    query: Query,
    load: "Callable[[str], Adapter]",
    *,
    limit: int | None,
    exact: int,
) -> list[Found]:
    """The adapters that meet the conditions, the most similar first.

    Args:
        index: where to look.
        which: the conditions.
        query: the adapter to compare with.
        load: gives an adapter of the library, by its digest.
        limit: the most to return.
        exact: of how many to compute the cosine exactly.

    Raises:
        ConfigError: the adapter changes nothing.
    """
    if query.sketch is None:
        raise ConfigError("similar: this adapter's change of the weights is zero, and similar to nothing")
    from weft.library.estimate import estimated_cosines, standard_error  # brings numpy

    rows, sketches = index.sketches(which)
    if not rows:
        return []
    cosines = estimated_cosines(sketches, query.sketch)
    order = (-cosines).argsort(kind="stable")[:limit]
    manifests = index.rows([rows[place] for place in order])
    found = [
        Found(manifest, float(cosines[place]), standard_error(float(cosines[place])))
        for manifest, place in zip(manifests, order, strict=True)
    ]
    if not exact:
        return found
    from weft.library.sketch import inner, norm

    one = query.adapter()
    length, sure = norm(one), []
    for each in found[:exact]:
        with suppress(FormatError):  # damaged, which is for `verify` to say, or gone meanwhile: the estimate stands
            cosine = inner(one, load(each.manifest.digest)) / (length * each.manifest.norm)
            each = replace(each, cosine=max(-1.0, min(1.0, cosine)), standard_error=0.0)
        sure.append(each)
    return [*sorted(sure, key=lambda each: -(each.cosine or 0.0)), *found[exact:]]
