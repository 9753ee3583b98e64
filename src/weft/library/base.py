"""Which of the bases that an index knows a base is."""

from pathlib import Path

from weft.fingerprint import Fingerprint
from weft.library.index import Index
from weft.library.query import BaseMatch


def rows_of_base(index: Index, base: Fingerprint) -> list[int]:
    """The known bases that are this one."""
    known = index.bases(base.structure)
    return [row for row, values in known.items() if base.difference(Fingerprint.from_dict(values)) is None]


def row_of_base(index: Index, base: Fingerprint | None) -> int | None:
    """A base's row, a new one if it is not known."""
    if base is None:
        return None
    known = rows_of_base(index, base)
    return known[0] if known else index.add_base(base.to_dict())


def matching_folder(index: Index, name: str, folder: Path) -> BaseMatch:
    """The known bases that are the model in a folder; adapters without a fingerprint go by what the base is called.

    Raises:
        ConfigError: transformers cannot build what is there.
        FormatError: its weights are damaged, or pickles.
    """
    from weft.training.skeleton import stored_model  # brings transformers

    return BaseMatch(
        rows=rows_of_base(index, stored_model(folder, "base").fingerprint()), bare_names=[name, str(folder.resolve())]
    )
