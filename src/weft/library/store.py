"""The folder of a library: objects and index, read and changed together.

The objects are the truth, the index a way to find them. Every change is one transaction of the index, which one process
at a time can be in; in it, folders are moved, and moved back if it does not end well. Reading takes no lock.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from weft.errors import ConfigError, FormatError, nearest
from weft.library import index
from weft.library.index import Index
from weft.library.manifest import Manifest
from weft.library.objects import Objects
from weft.library.record import Record


@dataclass(frozen=True)
class Store:
    """One library's folder.

    Attributes:
        root: the folder, which need not be there.
        timeout: how many seconds a change waits for another process's.
    """

    root: Path
    timeout: float

    @property
    def objects(self) -> Objects:
        """The adapters."""
        return Objects(self.root)

    @property
    def index(self) -> Path:
        """The index's file."""
        return self.root / "index.sqlite"

    def require_library(self) -> None:
        """Raises ConfigError if something is there that is no library."""
        in_use = self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir()))
        # Asked in this order: whoever makes a library begins with the folder of objects.
        if in_use and not self.objects.kept.is_dir() and not self.index.is_file():
            raise ConfigError(
                f"library: {self.root} is no library of adapters; name the folder of one, or one that is empty"
            )

    @contextmanager
    def reading(self) -> Iterator[Index]:
        """The index to read from; an empty one if there is no library yet.

        Raises:
            FormatError: it is damaged, missing, or of another weft.
        """
        if self.index.is_file():
            with index.reading(self.index, self.timeout) as found:
                yield found
        elif any(self.objects.all()):
            raise FormatError(
                f"the library at {self.root} has adapters and no index; `weft library verify --repair` makes one"
            )
        else:
            with index.empty() as found:
                yield found

    @contextmanager
    def changing(self) -> Iterator["Change"]:
        """A change, whole or not at all: an error in the block undoes it.

        Raises:
            StateError: another process is at it all the time.
            FormatError: the disk did not take it, or the index is damaged or of another weft.
        """
        with self.disk_errors(), ExitStack() as undo:
            self.objects.kept.mkdir(parents=True, exist_ok=True)
            with index.writing(self.index, self.timeout) as changed:
                yield Change(self, changed, undo)
            undo.pop_all()

    @contextmanager
    def changing_one(self, name: str, *, removed: bool = False) -> Iterator[tuple["Change", Manifest]]:
        """A change of one adapter, and what is said of it now.

        Raises:
            ConfigError: there is no such adapter; nothing is locked or made then.
        """
        with self.reading() as found:
            self.find(found, name, removed=removed)
        with self.changing() as change:
            yield change, self.find(change.index, name, removed=removed)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Says in weft's words what the disk refused."""
        try:
            yield
        except OSError as error:
            raise FormatError(
                f"cannot write to the library at {self.root}: {error.strerror or error}; it is as it was"
            ) from error

    def find(self, found: Index, name: str, *, removed: bool = False) -> Manifest:
        """The adapter of this name, or whose digest begins with it.

        Raises:
            ConfigError: there is none, or several.
        """
        matches = found.find(name, removed=removed)
        if len(matches) == 1:
            return matches[0]
        where = f"the {'trash of the ' if removed else ''}library at {self.root}"
        if matches:
            each = "; ".join(f"{m.digest[:12]} ({m.name}, added {m.added[:10]})" for m in matches)
            raise ConfigError(f"{name!r} could be several adapters in {where}: {each}; name one by its digest")
        names = [m.name for m in found.all(removed=True)] if removed else found.names()
        hint = nearest(name, names) if names else ", which is empty"
        if not removed and found.find(name, removed=True):
            hint = f"; it was removed, and `weft library restore {name}` brings it back"
        raise ConfigError(f"there is no adapter {name!r} in {where}{hint}")


@dataclass(frozen=True)
class Change:
    """A change in progress.

    Attributes:
        store: of what.
        index: in a transaction.
        undo: what takes the changes on the disk back.
    """

    store: Store
    index: Index
    undo: ExitStack

    def move(self, source: Path, target: Path) -> None:
        """Renames a folder; raises OSError."""
        self.store.objects.move(source, target)
        self.undo.callback(self.store.objects.move, target, source)

    def note(self, manifest: Manifest) -> None:
        """Writes an adapter's new manifest into its folder and the index."""
        self.index.change(manifest)
        folder = self.store.objects.place(manifest.digest)
        before = Record.read(folder)
        self.undo.callback(self.store.objects.describe, folder, before)
        self.store.objects.describe(folder, replace(before, manifest=manifest))

    def to_trash(self, manifest: Manifest) -> None:
        """Moves an adapter to the trash."""
        self.index.change(manifest, removed=True)
        self._move_to(manifest.digest, removed=True)

    def from_trash(self, manifest: Manifest) -> None:
        """Moves an adapter back, and notes what is said of it now."""
        self.index.change(manifest)
        self._move_to(manifest.digest, removed=False)
        self.note(manifest)

    def _move_to(self, digest: str, *, removed: bool) -> None:
        source, target = (self.store.objects.place(digest, removed=place) for place in (not removed, removed))
        if source.exists() or not target.exists():  # else a process was killed between the move and the commit
            self.move(source, target)

    def require_free(self, name: str, mine: Manifest) -> None:
        """Raises ConfigError if the name is another adapter's."""
        if self.index.named(name) not in (None, mine.digest):
            raise ConfigError(f"name: {name!r} is another adapter in the library at {self.store.root}; choose another")
