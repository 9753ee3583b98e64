"""What a search asks for, as the conditions of an SQL query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weft.library.index import RELEVANCE, Conditions, escaped, matching


@dataclass(frozen=True)
class BaseMatch:
    """Which bases count.

    Attributes:
        rows: in the index, those whose fingerprint matches.
        names: as it was recorded, whole or what stands there after a slash.
        bare_names: the same, for adapters that have no fingerprint.
        unknown: whether adapters count that have none, whatever they are for.
    """

    rows: Sequence[int] = ()
    names: Sequence[str] = ()
    bare_names: Sequence[str] = ()
    unknown: bool = False


def conditions(
    *,
    text: str = "",
    bases: Sequence[BaseMatch] = (),
    task: str | None = None,
    tags: Sequence[str] = (),
    but: str | None = None,
    ranked: bool,
) -> Conditions:
    """All of these hold, for adapters that are not removed; the best match first, else the newest.

    Args:
        text: words, each of which begins one in the name, task, tags, description, base or targets. Without a
            ranked index, each of which is in there.
        bases: the base, in each of these senses.
        but: the digest of one to leave out.
        task: the task, in whatever case.
        tags: all of these.
        ranked: whether the index has FTS5's text search.
    """
    order = "a.added DESC, a.id DESC"
    where, values = ["NOT a.removed"], list[Any]()
    if text.split():
        condition, words = matching(text, ranked)
        where.append(condition)
        values += words
        order = f"{RELEVANCE}, {order}" if ranked else order
    for base in bases:
        condition, named = _of_base(base)
        where.append(condition)
        values += named
    if task is not None:
        where.append("a.task = ?")
        values.append(task)
    for tag in tags:
        where.append("a.id IN (SELECT adapter FROM tags WHERE tag = ?)")
        values.append(tag)
    if but is not None:
        where.append("a.digest != ?")
        values.append(but)
    return Conditions(" AND ".join(where), tuple(values), order, words=bool(text.split()))


def _of_base(base: BaseMatch) -> tuple[str, list[Any]]:
    """The condition of a base, and its values."""
    either, values = [], list[Any]()
    if base.rows:
        either.append(f"a.base_id IN ({', '.join('?' * len(base.rows))})")
        values += base.rows
    for names, bare in ((base.names, ""), (base.bare_names, " AND a.base_id IS NULL")):
        for name in names:
            either.append(f"((a.base = ? OR a.base LIKE ? ESCAPE '\\'){bare})")
            values += [name, f"%/{escaped(name.strip('/'))}"]
    if base.unknown:
        either.append("a.base_id IS NULL")
    return f"({' OR '.join(either) or 'FALSE'})", values
