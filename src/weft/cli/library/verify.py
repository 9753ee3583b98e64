"""``weft library verify``: every adapter read again."""

from dataclasses import asdict
from typing import Annotated

import typer

from weft.cli.library.options import AsJson, Place
from weft.cli.output import errors, print_json, results


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the index anew from the adapters; delete what killed processes left.")
    ] = False,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Read every adapter again, and name what is damaged, missing or stray.

    Exits with 1 if something is wrong and was not repaired. A damaged adapter cannot be repaired: add it again from a
    copy, which replaces its files.
    """
    from weft.library import Library

    library = Library(place)
    with errors().status("verifying") as status:
        problems = library.verify(repair=repair, progress=lambda digest: status.update(f"verifying {digest[:12]}"))
        count = len(library) if repair or not any(problem.sort == "index" for problem in problems) else None
    left = [problem for problem in problems if not problem.repaired]
    if as_json:
        documents = [asdict(problem) | {"path": str(problem.path)} for problem in problems]
        print_json({"library": str(library.path), "adapters": count, "problems": documents})
    else:
        out = results()
        for problem in problems:
            name = f" {problem.name}" if problem.name else ""
            done = " (repaired)" if problem.repaired else ""
            out.print(f"{problem.sort}{name}{done}: {problem.message}", markup=False, soft_wrap=True)
        verdict = "all sound" if not problems else f"{len(problems)} problems, {len(left)} of them left"
        counted = "" if count is None else f"{count:,} adapter{'' if count == 1 else 's'}, "
        out.print(f"{counted}{verdict}", markup=False, soft_wrap=True)
    if left:
        raise typer.Exit(1)
