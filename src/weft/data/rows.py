"""Reading rows of data: JSONL, JSON, CSV, TSV and Parquet files, folders saved by `datasets`, and hub ids.

JSON, CSV and TSV are read by the standard library, so that a message can name the very line, and so that no
column's type is guessed (a completion ``007`` stays one); the rest goes through `datasets`.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from weft.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: by column.
        where: where it stands, in words, such as ``data.jsonl line 7``.
        again: reads the values once more, where `datasets` keeps them on disk: what is large need not be held.
    """

    values: Mapping[str, Any]
    where: str
    again: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)


def read_rows(source: str | Path, split: str = "train") -> Iterator[Row]:
    """The rows of a data set, in its order.

    Args:
        source: a .jsonl, .json (a list, or lines), .csv, .tsv or .parquet file, a folder that `datasets` saved, or a
            hub id (``id`` or ``id:config``).
        split: the split to read, of a saved folder or a hub id that has several.

    Raises:
        DataError: there is no such data, or it cannot be read; the message names the file and line.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved(path, split)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, found {path.suffix!r}")
        readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
        return readers[path.suffix](path)
    if path.suffix in SUFFIXES or str(source)[:1] in ("/", ".", "~"):
        raise DataError(f"there is no data file or folder {path}")
    return _hub(str(source), split)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Row(_object(line, path, number), f"{path} line {number}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} line {number + 1}: expected UTF-8 text, found {error.reason}") from error


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, as instructions are often published; or lines, whatever the file is called."""
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"["):
            yield from _jsonl(path)
            return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one
        raise DataError(f"{path}: cannot be read as JSON in UTF-8: {error}") from error
    for number, values in enumerate(rows, 1):
        where = f"{path} row {number}"
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object, found {_short(json.dumps(values))}")
        yield Row(values, where)


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} line {number}: expected a JSON object, found {_short(line)} ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} line {number}: expected a JSON object, found {_short(line)}")
    return values


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _table(path, "CSV", csv.DictReader(file, restkey="", strict=True), "quote values that hold commas")


def _tsv(path: Path) -> Iterator[Row]:
    """Quotes mean nothing in it, as in the files of Common Voice: a sentence may hold one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        yield from _table(path, "TSV", reader, "take tabs out of the values")


def _table(path: Path, form: str, reader: "csv.DictReader[str]", advice: str) -> Iterator[Row]:
    try:
        for values in reader:
            where = f"{path} line {reader.line_num}"
            if "" in values:
                raise DataError(f"{where}: more values than the header has columns; {advice}")
            yield Row({key: value for key, value in values.items() if value is not None}, where)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} line {reader.line_num + 1}: cannot be read as {form} in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]  # comes with `datasets`

    try:
        batches = parquet.ParquetFile(path).iter_batches()
        yield from _numbered((values for batch in batches for values in batch.to_pylist()), str(path))
    except (OSError, ValueError) as error:  # pyarrow's errors are of these two types
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _saved(path: Path, split: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a folder that `datasets` saved (save_to_disk): {error}") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            raise DataError(f"{path}: there is no split {split!r} (there are: {', '.join(data)})")
        data = data[split]
    return _kept(data, str(path))


def _hub(source: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    name, _, config = source.partition(":")
    try:
        data = load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:  # not found, no network, no such split or configuration
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{source!r} is no file here, and `datasets` cannot load it as a hub id: {reason}") from error
    return _kept(data, source)


def _kept(data: Any, name: str) -> Iterator[Row]:
    """Rows of one of `datasets`' data sets; audio comes as {"path", "bytes"}, for who needs it to decode."""
    from datasets import Audio

    for column, feature in data.features.items():
        if isinstance(feature, Audio):
            data = data.cast_column(column, Audio(decode=False))
    for index, row in enumerate(_numbered(data, name)):
        yield Row(row.values, row.where, partial(data.__getitem__, index))


def _numbered(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    """Rows of a table, whose null entries count as missing."""
    for number, values in enumerate(rows, 1):
        yield Row({key: value for key, value in values.items() if value is not None}, f"{name} row {number}")


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:37] + "...")
