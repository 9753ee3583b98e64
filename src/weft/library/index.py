"""The index of a library: an SQLite file by which adapters are found. All that it says can be made anew from them.

A connection lasts for one reading or one change, so that an index may be used from any thread and after a fork.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from weft.errors import FormatError, StateError
from weft.library.manifest import Manifest

SCHEMA = 1
_APPLICATION = 0x77656674  # "weft", in the file's header

_TABLES = """
CREATE TABLE bases (id INTEGER PRIMARY KEY, structure TEXT NOT NULL, fingerprint TEXT NOT NULL);
CREATE INDEX structures ON bases (structure);
CREATE TABLE adapters (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    removed INTEGER NOT NULL,
    base TEXT COLLATE NOCASE,
    base_id INTEGER REFERENCES bases (id),
    task TEXT COLLATE NOCASE,
    added TEXT NOT NULL
);
CREATE UNIQUE INDEX names ON adapters (name) WHERE NOT removed;
CREATE INDEX by_name ON adapters (name);
CREATE INDEX by_time ON adapters (removed, added);
CREATE INDEX by_base ON adapters (base_id, removed, added);
CREATE INDEX by_task ON adapters (task, removed, added);
CREATE TABLE manifests (adapter INTEGER PRIMARY KEY, manifest TEXT NOT NULL);
CREATE TABLE tags (tag TEXT NOT NULL, adapter INTEGER NOT NULL, PRIMARY KEY (tag, adapter)) WITHOUT ROWID;
CREATE TABLE sketches (adapter INTEGER PRIMARY KEY, sketch BLOB NOT NULL);
"""
# Each adapter's rows, by their key.
_KEYS = {"tags": "adapter", "sketches": "adapter", "words": "rowid", "manifests": "adapter", "adapters": "id"}
_TEXTS = "name, task, tags, description, base, targets"
_WEIGHTS = "10, 5, 5, 2, 1, 1"  # of these columns, in the order of relevance
# Without FTS5 a table of the same columns, which is looked through.
_WORDS = {
    True: f"CREATE VIRTUAL TABLE words USING fts5({_TEXTS}, prefix='2 3')",
    False: f"CREATE TABLE words ({_TEXTS})",
}


@dataclass(frozen=True)
class Conditions:
    """Which adapters a query is about (see `weft.library.query`), as SQL with these values.

    Attributes:
        where: the condition, over the table `a` of adapters.
        values: those of its question marks.
        order: by what adapters are sorted.
        words: whether the table of words takes part.
    """

    where: str
    values: tuple[Any, ...]
    order: str
    words: bool

    @property
    def tables(self) -> str:
        """What to select from."""
        return "adapters a JOIN words ON words.rowid = a.id" if self.words else "adapters a"


class Index:
    """An open index. `reading` and `writing` give one."""

    def __init__(self, connection: sqlite3.Connection, ranked: bool) -> None:
        self._connection = connection
        self.ranked = ranked  # whether it has FTS5's text search

    def names(self) -> list[str]:
        """Of all adapters that are not removed."""
        return [name for (name,) in self._all("SELECT name FROM adapters WHERE NOT removed ORDER BY name")]

    def all(self, *, removed: bool, limit: int | None = None) -> list[Manifest]:
        """All adapters that are removed, or are not; the newest first."""
        query = "SELECT id FROM adapters WHERE removed = ? ORDER BY added DESC, id DESC LIMIT ?"
        return self.rows(self._column(query, removed, _no_more_than(limit)))

    def count(self) -> int:
        """How many there are that are not removed."""
        ((count,),) = self._all("SELECT count(*) FROM adapters WHERE removed = 0")
        return int(count)

    def find(self, name: str, *, removed: bool = False) -> list[Manifest]:
        """The adapter of this name; if there is none, those whose digest begins with it. The newest first."""
        query = "SELECT id FROM adapters WHERE {} AND +removed = ? ORDER BY added DESC, id DESC"
        found = self._column(query.format("name = ?"), name, removed)
        if not found and len(name) >= 4 and set(name) <= set("0123456789abcdef"):
            found = self._column(query.format("digest BETWEEN ? AND ?"), name, f"{name}g", removed)
        return self.rows(found)

    def named(self, name: str) -> str | None:
        """The digest of the adapter of this name that is not removed."""
        return next(iter(self._column("SELECT digest FROM adapters WHERE name = ? AND NOT removed", name)), None)

    def get(self, digest: str) -> tuple[Manifest, bool] | None:
        """The adapter of this digest, and whether it is removed."""
        found = self._all("SELECT id, removed FROM adapters WHERE digest = ?", digest)
        return (self.rows([found[0][0]])[0], bool(found[0][1])) if found else None

    def everything(self) -> dict[str, tuple[Manifest, bool]]:
        """Digest -> manifest, and whether it is removed, of all that is noted."""
        rows = self._all("SELECT a.digest, m.manifest, a.removed FROM adapters a JOIN manifests m ON m.adapter = a.id")
        return {digest: (_manifest(text), bool(removed)) for digest, text, removed in rows}

    def select(self, which: Conditions, limit: int | None) -> list[Manifest]:
        """The manifests of the adapters that meet the conditions, in their order."""
        query = f"SELECT a.id FROM {which.tables} WHERE {which.where} ORDER BY {which.order} LIMIT ?"
        return self.rows(self._column(query, *which.values, _no_more_than(limit)))

    def sketches(self, which: Conditions) -> tuple[list[int], list[bytes]]:
        """Rows and sketches of the adapters that meet the conditions, without those that change nothing."""
        # A scan of the sketches, in order, is faster than looking up most of them; words are looked up first.
        join = "JOIN" if which.words else "CROSS JOIN"
        query = f"SELECT a.id, s.sketch FROM sketches s {join} {which.tables} WHERE s.adapter = a.id AND {which.where}"
        found = self._all(query, *which.values)
        return [row for row, _ in found], [sketch for _, sketch in found]

    def sketch(self, digest: str) -> bytes | None:
        """One adapter's sketch."""
        query = "SELECT s.sketch FROM sketches s JOIN adapters a ON a.id = s.adapter WHERE a.digest = ?"
        return next(iter(self._column(query, digest)), None)

    def rows(self, rows: Sequence[int]) -> list[Manifest]:
        """The manifests of these rows, in their order."""
        query = "SELECT manifest FROM manifests WHERE adapter = ?"
        return [_manifest(self._column(query, row)[0]) for row in rows]

    def bases(self, structure: str) -> dict[int, dict[str, Any]]:
        """Row -> fingerprint, of the known bases of this structure."""
        found = self._all("SELECT id, fingerprint FROM bases WHERE structure = ?", structure)
        return {row: json.loads(text) for row, text in found}

    def base_of(self, digest: str) -> int | None:
        """The row of the base of an adapter."""
        return next(iter(self._column("SELECT base_id FROM adapters WHERE digest = ?", digest)), None)

    def add_base(self, fingerprint: dict[str, Any]) -> int:
        """Notes a base; returns its row."""
        values = (fingerprint["structure"], json.dumps(fingerprint))
        row = self._connection.execute("INSERT INTO bases (structure, fingerprint) VALUES (?, ?)", values).lastrowid
        assert row is not None
        return row

    def add(self, manifest: Manifest, *, base: int | None, sketch: bytes | None, removed: bool = False) -> None:
        """Notes an adapter."""
        row = self._connection.execute(
            "INSERT INTO adapters (digest, name, removed, base, base_id, task, added) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (manifest.digest, manifest.name, removed, manifest.base, base, manifest.task, manifest.added),
        ).lastrowid
        if sketch is not None:
            self._connection.execute("INSERT INTO sketches VALUES (?, ?)", (row, sketch))
        self._describe(row, manifest, removed)

    def change(self, manifest: Manifest, *, removed: bool = False) -> None:
        """Notes an adapter's new manifest, and whether it is removed."""
        (row,) = self._column("SELECT id FROM adapters WHERE digest = ?", manifest.digest)
        self._describe(row, manifest, removed)

    def forget(self, digest: str) -> None:
        """Takes an adapter out."""
        for row in self._column("SELECT id FROM adapters WHERE digest = ?", digest):
            for table, key in _KEYS.items():
                self._connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (row,))

    def damage(self) -> str | None:
        """What SQLite finds wrong in its file, if anything."""
        ((found,),) = self._all("PRAGMA quick_check(1)")
        return None if found == "ok" else str(found)

    def clear(self) -> None:
        """Takes everything out."""
        for table in (*_KEYS, "bases"):
            self._connection.execute(f"DELETE FROM {table}")

    def _describe(self, row: int | None, manifest: Manifest, removed: bool) -> None:
        """Writes what a manifest says into an adapter's row and the tables beside it."""
        execute = self._connection.execute
        execute(
            "UPDATE adapters SET name = ?, task = ?, removed = ? WHERE id = ?",
            (manifest.name, manifest.task, removed, row),
        )
        execute("INSERT OR REPLACE INTO manifests VALUES (?, ?)", (row, json.dumps(manifest.to_dict())))
        execute("DELETE FROM tags WHERE adapter = ?", (row,))
        self._connection.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, row) for tag in manifest.tags])
        words = (
            *(manifest.name, manifest.task, " ".join(manifest.tags), manifest.description, manifest.base),
            " ".join(manifest.targets),
        )
        execute("DELETE FROM words WHERE rowid = ?", (row,))
        execute(f"INSERT INTO words (rowid, {_TEXTS}) VALUES (?, ?, ?, ?, ?, ?, ?)", (row, *words))

    def _column(self, query: str, *values: Any) -> list[Any]:
        return [value for (value,) in self._connection.execute(query, values)]

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()


class DamagedIndexError(FormatError):
    """An index that cannot be used, and may be made anew."""


@contextmanager
def reading(path: Path, timeout: float) -> Iterator[Index]:
    """The index, to read from: one state of it, whatever others write meanwhile.

    Raises:
        FormatError: it is damaged, or of another weft.
    """
    with _named(path, timeout, "read"), ExitStack() as stack:
        connection = stack.enter_context(closing(_connect(path, timeout)))
        try:
            connection.execute("BEGIN")
            new = _is_new(connection)
        except sqlite3.OperationalError as error:
            # A place that cannot be written, or is full, so that the log's own files cannot be made.
            connection.close()
            if _code(error) not in _NO_ROOM or (_log(path).exists() and _log(path).stat().st_size):
                raise  # another process is writing
            connection = stack.enter_context(closing(_connect(path, timeout, immutable=True)))
            new = _is_new(connection)
        yield stack.enter_context(empty()) if new else Index(connection, _check(connection, path))


@contextmanager
def writing(path: Path, timeout: float, *, fts5: bool | None = None) -> Iterator[Index]:
    """The index, to change: nobody else does until the block ends, and an error in it takes all back.

    Args:
        path: the file, made if it is not there.
        timeout: how many seconds to wait for another process.
        fts5: whether a new index has FTS5's text search; None: if this SQLite has it.

    Raises:
        StateError: another process is at it all the time.
        FormatError: the disk did not take it, or it is damaged, or of another weft.
    """
    with _named(path, timeout, "write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect(path, timeout, create=True)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")  # what is lost with the power is found by `verify`
            if _is_new(connection):
                _use_log(connection, timeout)
                connection.execute("BEGIN IMMEDIATE")
                if _is_new(connection):  # still: nobody else was faster
                    _create(connection, has_fts5() if fts5 is None else fts5)
                connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Index(connection, _check(connection, path))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


@cache
def has_fts5() -> bool:
    """Whether this Python's SQLite was built with FTS5."""
    with closing(sqlite3.connect(":memory:")) as connection:
        return any(option == "ENABLE_FTS5" for (option,) in connection.execute("PRAGMA compile_options"))


@contextmanager
def empty() -> Iterator[Index]:
    """The index of a library that is not there yet."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _create(connection, has_fts5())
        yield Index(connection, has_fts5())


def delete(path: Path) -> None:
    """Deletes an index's files.

    Raises:
        FormatError: the disk does not let go of them.
    """
    with _named(path, 0, "write to"):
        for each in (path, _log(path), path.with_name(f"{path.name}-shm")):
            each.unlink(missing_ok=True)


def matching(text: str, ranked: bool) -> tuple[str, list[str]]:
    """The condition that all words of a text are found, and its values."""
    words = text.split()
    if ranked:
        return "words MATCH ?", [" ".join(f'"{word.replace(chr(34), chr(34) * 2)}"*' for word in words)]
    columns = " || ' ' || ".join(f"coalesce(words.{column}, '')" for column in _TEXTS.split(", "))
    return " AND ".join([f"{columns} LIKE ? ESCAPE '\\'"] * len(words)), [f"%{escaped(word)}%" for word in words]


def escaped(text: str) -> str:
    """A text as LIKE takes it literally."""
    return "".join(f"\\{c}" if c in "%_\\" else c for c in text)


RELEVANCE = f"bm25(words, {_WEIGHTS})"


def _connect(path: Path, timeout: float, *, create: bool = False, immutable: bool = False) -> sqlite3.Connection:
    mode = "immutable=1" if immutable else f"mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=timeout, isolation_level=None)


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing at all in the file yet."""
    return _version(connection) == 0 and not connection.execute("SELECT 1 FROM sqlite_schema").fetchall()


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _use_log(connection: sqlite3.Connection, timeout: float) -> None:
    """Write-ahead logging, by which readers and a writer do not wait for each other; kept in the file."""
    end = time.monotonic() + timeout
    while True:  # SQLite does not wait here by itself
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _create(connection: sqlite3.Connection, fts5: bool) -> None:
    for statement in [*_TABLES.split(";"), _WORDS[fts5]]:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the index has FTS5's text search.

    Raises:
        FormatError: it is of another weft, or this SQLite lacks FTS5.
    """
    version = _version(connection)
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    if application != _APPLICATION or version < SCHEMA:
        raise DamagedIndexError(f"{path} is no index of this weft; {_REPAIR}")
    if version > SCHEMA:
        raise FormatError(
            f"{path} was made by a newer weft (schema {version}, known here: {SCHEMA}); upgrade weft. The adapters are "
            f"PEFT folders under {path.parent / 'objects'}, whatever the index is"
        )
    ((text,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'words'").fetchall()
    ranked = "fts5" in text
    if ranked and not has_fts5():
        raise DamagedIndexError(
            f"{path} has an FTS5 text index, and this Python's SQLite was built without FTS5; {_REPAIR}"
        )
    return ranked


def _version(connection: sqlite3.Connection) -> int:
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    return int(version)


_NO_ROOM = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
_REPAIR = "`weft library verify --repair` makes it anew from the adapters"


@contextmanager
def _named(path: Path, timeout: float, do: str) -> Iterator[None]:
    """Says in weft's words what SQLite or the disk refused."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StateError(
                f"the library at {path.parent} is in use: another process was writing to it for {timeout:g} seconds. "
                "Try again"
            ) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise DamagedIndexError(f"{path} is damaged ({error}); {_REPAIR}") from error
        if code in (*_NO_ROOM, sqlite3.SQLITE_PERM):
            # SQLite says of a read-only folder that it is unable to open the file.
            read_only = do == "write to" and path.parent.is_dir() and not os.access(path.parent, os.W_OK)
            why = "it cannot be written there (read-only)" if read_only else f"{error}"
            raise FormatError(f"cannot {do} the library at {path.parent}: {why}; it is as it was") from error
        raise
    except OSError as error:
        raise FormatError(
            f"cannot {do} the library at {path.parent}: {error.strerror or error}; it is as it was"
        ) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; -1 for an error of the sqlite3 module's own."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF


def _no_more_than(limit: int | None) -> int:
    """As LIMIT has it."""
    return -1 if limit is None else limit


def _manifest(text: str) -> Manifest:
    return Manifest.from_dict(json.loads(text))
