"""``weft library tag``, ``remove``, ``restore`` and ``prune``: what is said of an adapter, and whether it is there."""

from typing import Annotated

import typer

from weft.cli.adapter_options import split
from weft.cli.library.options import AsJson, Name, Place
from weft.cli.output import print_json, results, size


def tag(
    name: Name,
    tags: Annotated[list[str], typer.Argument(help="Tags to add.", show_default=False)] = [],  # noqa: B006  # typer wants a list, and does not change it
    drop: Annotated[list[str], typer.Option("--drop", help="A tag to take away. Repeat for more.")] = [],  # noqa: B006
    rename: Annotated[str | None, typer.Option(help="Another name.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help='What it is for; "" for nothing.', show_default=False)] = None,
    description: Annotated[str | None, typer.Option(help='Any text; "" for none.', show_default=False)] = None,
    licence: Annotated[
        str | None, typer.Option(help='Under which it may be used; "" for none.', show_default=False)
    ] = None,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Change an adapter's tags, name, task, description or licence.

    Examples:

        weft library tag summarize good fast --drop draft

        weft library tag summarize --rename summarize-en --task summarize
    """
    from weft.errors import ConfigError
    from weft.library import Library

    if not tags and not drop and all(value is None for value in (rename, task, description, licence)):
        raise ConfigError("tag: nothing to change was given; name tags, or see --help")
    found = Library(place).edit(
        name,
        rename=rename,
        tags=split(tags),
        drop_tags=split(drop),
        task=task,
        description=description,
        licence=licence,
    )
    if as_json:
        print_json({"adapter": found.to_dict()})
        return
    results().print(f"{found.name}: {', '.join(found.tags) or 'no tags'}", markup=False, soft_wrap=True)


def remove(name: Name, place: Place = None, as_json: AsJson = False) -> None:
    """Move an adapter to the trash; `restore` brings it back, until `prune`."""
    from weft.library import Library

    found = Library(place).remove(name)
    if as_json:
        print_json({"adapter": found.to_dict()})
        return
    results().print(
        f"removed {found.name}; `weft library restore {found.name}` brings it back until `weft library prune`",
        markup=False,
        soft_wrap=True,
    )


def restore(
    name: Annotated[str, typer.Argument(help="Its name, or the beginning of its digest.", show_default=False)],
    rename: Annotated[str | None, typer.Option(help="Another name.", show_default=False)] = None,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Bring a removed adapter back."""
    from weft.library import Library

    found = Library(place).restore(name, rename=rename)
    if as_json:
        print_json({"adapter": found.to_dict()})
        return
    results().print(f"restored {found.name}", markup=False, soft_wrap=True)


def prune(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Delete what is in the trash for good, after saying how much that is and asking."""
    from weft.library import Library

    library = Library(place)
    nbytes, count = library.trash_bytes(), len(library.removed())
    what = f"{count} adapter{'' if count == 1 else 's'}, {size(nbytes)}"
    sure = bool(nbytes) and (yes or typer.confirm(f"Delete {what} for good?", err=True))
    gone = library.prune() if sure else []
    if as_json:
        print_json({"deleted": [found.to_dict() for found in gone], "bytes": nbytes if sure else 0})
        return
    said = f"deleted {what}" if sure else "nothing was deleted" if nbytes else "the trash is empty"
    results().print(said, markup=False, soft_wrap=True)
