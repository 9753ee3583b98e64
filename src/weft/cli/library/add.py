"""``weft library add``: an adapter into the library."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.adapter_options import split
from weft.cli.library.options import AsJson, Place
from weft.cli.output import errors, print_json, results, size


def add(
    adapter: Annotated[Path, typer.Argument(help="The adapter, or the folder of a run.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What to call it. Default: as its folder.", show_default=False)
    ] = None,
    tags: Annotated[
        list[str], typer.Option("--tag", help="A word to find it by. Repeat for more.", show_default=False)
    ] = [],  # noqa: B006  # typer wants a list, and does not change it
    task: Annotated[str | None, typer.Option(help="What it is for.", show_default=False)] = None,
    description: Annotated[str | None, typer.Option(help="Any text.", show_default=False)] = None,
    licence: Annotated[str | None, typer.Option(help="Under which it may be used.", show_default=False)] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="If another adapter has the name, move that one to the trash.")
    ] = False,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Put an adapter into the library.

    It is read, checked, and written as a PEFT folder of the library's own. Of a run's folder, the final metrics and the
    data's checksum are noted too. The same adapter is not added twice: what is given is then noted of the one that is
    there, and its files are written again if they are damaged.

    Examples:

        weft library add runs/summarize --tag good --licence apache-2.0

        weft library add some/peft-folder --name chat-v2 --task chat
    """
    from weft.library import Library

    library = Library(place)
    with errors().status("adding"):
        done = library.add(
            adapter,
            name,
            task=task,
            tags=split(tags),
            description=description,
            licence=licence,
            replace=replace,
        )
    found = done.manifest
    if as_json:
        replaced = None if done.replaced is None else done.replaced.digest
        print_json({"new": done.new, "mended": done.mended, "replaced": replaced, "adapter": found.to_dict()})
        return
    what = "added" if done.new else "mended the files of" if done.mended else "in the library already:"
    out = results()
    out.print(
        f"{what} {found.name}: {found.modules} modules, {found.parameters:,} parameters, {size(found.nbytes)}, digest "
        f"{found.digest[:12]}",
        markup=False,
        soft_wrap=True,
    )
    if done.replaced is not None:
        before = done.replaced.digest[:12]
        out.print(f"what had the name before, {before}, is in the trash", markup=False, soft_wrap=True)
