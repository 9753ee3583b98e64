"""``weft library list`` and ``search``: tables of adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from weft.cli.adapter_options import split
from weft.cli.library.options import AsJson, Place
from weft.cli.output import errors, print_json, results, size

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.library import Found, Library, Manifest


def list_adapters(
    limit: Annotated[int, typer.Option(min=0, help="The most to show; 0 for all.")] = 50,
    removed: Annotated[bool, typer.Option("--removed", help="Show what is in the trash.")] = False,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters of the library, the newest first."""
    from weft.library import Library

    library = Library(place)
    found = library.removed() if removed else library.adapters(limit=limit or None)
    total = len(found) if removed else len(library)
    found = found[: limit or None]
    if as_json:
        print_json({"library": str(library.path), "adapters": [m.to_dict() for m in found], "total": total})
        return
    if not found:
        where = "the trash is empty" if removed else "no adapters"
        results().print(f"{where} in the library at {library.path}", markup=False, soft_wrap=True)
        return
    _print(found)
    if total > len(found):
        errors().print(f"and {total - len(found):,} more; --limit 0 shows all, `weft library search` finds some")


def search(
    text: Annotated[
        list[str], typer.Argument(help="Words of the name, task, tags, description, base or targets.")
    ] = [],  # noqa: B006  # typer wants a list, and does not change it
    base: Annotated[
        str | None,
        typer.Option(
            help="Made for this base: a model's folder, `bundled`, or a name as it was recorded.", show_default=False
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of this task.", show_default=False)] = None,
    tags: Annotated[
        list[str], typer.Option("--tag", help="With this tag. Repeat for several, all of which count.")
    ] = [],  # noqa: B006
    similar: Annotated[
        str | None,
        typer.Option(help="The nearest to this adapter: a path, or a name in the library.", show_default=False),
    ] = None,
    exact: Annotated[
        int, typer.Option(min=0, help="With --similar: for how many to compute the cosine from the factors.")
    ] = 5,
    limit: Annotated[int, typer.Option(min=0, help="The most to show; 0 for all.")] = 20,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Search the library by text, base, task, tag and similarity; all that is given has to hold.

    A base's folder is compared by its fingerprint: names, shapes and a few weights. Similarity is the cosine of two
    changes of the weights, D = s B A, over all modules; it is estimated from small sketches for every adapter, and
    computed exactly for the nearest.

    Examples:

        weft library search short answers --tag good

        weft library search --base ./my-base --task summarize

        weft library search --similar runs/new
    """
    from weft.library import Library
    from weft.library.index import has_fts5

    library = Library(place)
    if text and not has_fts5():
        errors().print("this Python's SQLite has no FTS5: words are looked for anywhere, and the newest comes first")
    found = library.search(
        " ".join(text),
        base=base,
        task=task,
        tags=split(tags),
        similar=None if similar is None else _similar(library, similar),
        limit=limit or None,
        exact=exact,
    )
    if as_json:
        documents = [
            {"cosine": each.cosine, "standard_error": each.standard_error, "adapter": each.manifest.to_dict()}
            for each in found
        ]
        print_json({"library": str(library.path), "found": documents})
        return
    if not found:
        results().print(f"nothing in the library at {library.path} meets all of this", markup=False, soft_wrap=True)
        return
    _print([each.manifest for each in found], [_cosine(each) for each in found] if similar is not None else None)


def _similar(library: "Library", similar: str) -> "str | Adapter":
    """A path's adapter, or a name in this library."""
    if not Path(similar).exists() and similar in library:
        return similar
    from weft.cli.adapters import adapter_path
    from weft.formats import load

    return load(adapter_path(Path(similar)))


def _cosine(found: "Found") -> str:
    assert found.cosine is not None
    return f"{found.cosine:.3f}" if not found.standard_error else f"{found.cosine:.2f} ± {found.standard_error:.2f}"


def _print(found: "Sequence[Manifest]", cosines: Sequence[str] | None = None) -> None:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns: list[tuple[str, dict[str, Any]]] = [("name", {"overflow": "fold"}), ("task", {}), ("tags", {})]
    columns += [("base", {}), ("rank", {"justify": "right"}), ("size", {"justify": "right", "no_wrap": True})]
    columns += [("added", {"no_wrap": True})]
    if cosines is not None:
        columns.insert(1, ("cosine", {"no_wrap": True}))
    for name, settings in columns:
        made.add_column(name, **settings)
    for place, m in enumerate(found):
        ranks = "" if m.ranks is None else str(m.ranks[0]) if len({*m.ranks}) == 1 else "{} to {}".format(*m.ranks)
        base = (m.base or "").rstrip("/").rpartition("/")[2]
        cells = [m.name, m.task or "", ", ".join(m.tags), base, ranks, size(m.nbytes), m.added[:10]]
        if cosines is not None:
            cells.insert(1, cosines[place])
        made.add_row(*map(escape, cells))
    results().print(made)
