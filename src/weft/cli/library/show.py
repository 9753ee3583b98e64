"""``weft library show``: one adapter's card."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.tree import Tree

from weft.cli.library.options import AsJson, Name, Place
from weft.cli.output import print_json, results, size

if TYPE_CHECKING:
    from weft.library import Ancestor, Manifest


def show(name: Name, place: Place = None, as_json: AsJson = False) -> None:
    """Show what the library says of an adapter, and the tree of what it was made from."""
    from weft.library import Library

    library = Library(place)
    found = library[name]
    tree = library.lineage(found.digest)
    if as_json:
        folder = str(library.folder(found.digest))
        print_json({"adapter": found.to_dict(), "lineage": tree.to_dict(), "folder": folder})
        return
    console = results()
    facts = {key: value for key, value in _facts(found).items() if value}
    width = max(map(len, facts))
    for key, value in facts.items():
        console.print(f"{key.ljust(width)}  {value}", markup=False, soft_wrap=True)
    if tree.inputs or tree.operation:
        console.print("made from")
        console.print(_branch(tree, None))


def _facts(m: "Manifest") -> dict[str, str]:
    ranks = (
        "" if m.ranks is None else f"rank {m.ranks[0]}" if len({*m.ranks}) == 1 else "rank {} to {}".format(*m.ranks)
    )
    known = {"base", "data", "lineage", "task", "task_type", "licence", "license", "created"}
    return {
        "name": m.name,
        "digest": m.digest,
        "description": m.description or "",
        "task": m.task or "",
        "tags": ", ".join(m.tags),
        "licence": m.licence or "",
        "base": m.base or "not named",
        "fingerprint": m.fingerprint or "none",
        "change": ", ".join(
            part for part in (m.variant, ranks, f"{m.modules} modules: {', '.join(m.targets)}") if part
        ),
        "size": f"{m.parameters:,} parameters, {size(m.nbytes)}; norm {m.norm:.4g}",
        "data": m.data or "",
        "data's sha256": m.data_sha256 or "",
        "metrics": ", ".join(f"{key} {value:.4g}" for key, value in m.metrics.items()),
        "created": m.created or "",
        "added": m.added,
        **{key: str(value) for key, value in m.provenance.items() if key not in known},
    }


def _branch(ancestor: "Ancestor", above: Tree | None) -> Tree:
    """One adapter of the tree, with what it was made from under it."""
    weight = "" if ancestor.weight is None else f"{ancestor.weight:g} x "
    digest = "" if ancestor.digest is None else f"  {ancestor.digest[:12]}"
    where = "" if ancestor.in_library else "  (not in the library)"
    made = "" if ancestor.operation is None else f"  <- {ancestor.operation}"
    label = escape(f"{weight}{ancestor.name or 'unnamed'}{digest}{where}{made}")
    tree = Tree(label) if above is None else above.add(label)
    for each in ancestor.inputs:
        _branch(each, tree)
    return tree
