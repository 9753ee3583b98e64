"""`Library`: adapters under names, in a folder that several processes may use at once."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import ConfigError, FormatError, nearest
from weft.library.index import Index
from weft.library.lineage import Ancestor, ancestors
from weft.library.manifest import Manifest, checked_name, checked_tags
from weft.library.objects import folder_bytes
from weft.library.place import default_place
from weft.library.query import BaseMatch, conditions
from weft.library.similar import Found, Query, nearest_first
from weft.library.store import Store

if TYPE_CHECKING:  # torch takes seconds to import, and finding an adapter does not need it
    from weft.adapter import Adapter
    from weft.fingerprint import Fingerprint
    from weft.library.adding import Addition
    from weft.library.verify import Problem


class Library:
    """A library of adapters. A place where nothing is yet is an empty one; the first adapter makes the folder.

    Args:
        path: its folder; None for the default one (see `weft.library.place`).
        timeout: how many seconds a change waits for another process's.

    Every method raises FormatError where the disk or a damaged index does not let it do its work; those that change
    something raise StateError if another process was writing all the time. In each case the library is as it was.

    Raises:
        ConfigError: something is there that is no library.
    """

    def __init__(self, path: str | Path | None = None, *, timeout: float = 10.0) -> None:
        self.path = default_place() if path is None else Path(path).expanduser()
        self._store = Store(self.path, timeout)
        self._store.require_library()

    def __repr__(self) -> str:
        return f"Library({str(self.path)!r})"

    def __getitem__(self, name: str) -> Manifest:
        """The adapter of this name, or whose digest begins with it (4 digits at least).

        Raises:
            ConfigError: there is none, or several.
        """
        with self._store.reading() as index:
            return self._store.find(index, name)

    def get(self, name: str) -> Manifest | None:
        """The same, or None where there is none or several."""
        with self._store.reading() as index:
            found = index.find(name)
        return found[0] if len(found) == 1 else None

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __len__(self) -> int:
        with self._store.reading() as index:
            return index.count()

    def names(self) -> list[str]:
        """Of all adapters, sorted."""
        with self._store.reading() as index:
            return index.names()

    def adapters(self, *, limit: int | None = None) -> list[Manifest]:
        """What the library says of each adapter, the newest first."""
        with self._store.reading() as index:
            return index.all(removed=False, limit=limit)

    def removed(self) -> list[Manifest]:
        """What is in the trash, the newest first."""
        with self._store.reading() as index:
            return index.all(removed=True)

    def folder(self, name: str) -> Path:
        """The PEFT folder of an adapter, to read from.

        Raises:
            ConfigError: there is no such adapter.
        """
        return self._store.objects.place(self[name].digest)

    def load(self, name: str) -> "Adapter":
        """An adapter as a value.

        Raises:
            ConfigError: there is no such adapter.
        """
        return self._load(self[name].digest)

    def add(
        self,
        source: "str | Path | Adapter",
        name: str | None = None,
        *,
        task: str | None = None,
        tags: Iterable[str] = (),
        description: str | None = None,
        licence: str | None = None,
        metrics: Mapping[str, float] | None = None,
        replace: bool = False,
    ) -> "Addition":
        """Puts an adapter into the library.

        The same adapter (of the same digest) is not added twice: what is given here is then noted of the one that is
        there, and its files are written again if they are damaged.

        Args:
            source: the adapter, its path, or the folder of a run, whose metrics and data are noted too.
            name: what to call it; by default what its path ends in.
            task, description, licence, metrics: noted in place of what the adapter itself says.
            tags: words to find it by.
            replace: if another adapter has the name, that goes to the trash; otherwise it is an error.

        Raises:
            ConfigError: NaN or infinity in it, a name that is taken or cannot be, or it is there under another name.
            FormatError: a file is not what it says.
        """
        from weft.library.adding import add
        from weft.library.describe import Source, finite, read_source

        checked = checked_tags(tags)
        given = {"task": task, "description": description, "licence": licence}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if metrics is not None:
            values["metrics"] = finite(metrics)
        read = read_source(Path(source).expanduser()) if isinstance(source, str | Path) else Source(source)
        return add(self._store, read, name, checked, values, take_name=replace)

    def edit(
        self,
        name: str,
        *,
        rename: str | None = None,
        tags: Iterable[str] = (),
        drop_tags: Iterable[str] = (),
        task: str | None = None,
        description: str | None = None,
        licence: str | None = None,
    ) -> Manifest:
        """Changes what the library says of an adapter.

        Args:
            name: which.
            rename: what to call it from now on.
            tags: to add.
            drop_tags: to take away.
            task, description, licence: the new one; "" for none.

        Raises:
            ConfigError: there is no such adapter or tag, or the new name is taken.
        """
        given = {"task": task, "description": description, "licence": licence}
        values: dict[str, Any] = {key: value or None for key, value in given.items() if value is not None}
        if rename is not None:
            values["name"] = checked_name(rename)
        more, fewer = checked_tags(tags), checked_tags(drop_tags)
        with self._store.changing_one(name) as (change, manifest):
            absent = next((tag for tag in fewer if tag not in manifest.tags), None)
            if absent is not None:
                has = ", ".join(manifest.tags) or "none"
                raise ConfigError(
                    f"tags: {manifest.name} has no tag {absent!r}{nearest(absent, manifest.tags)} (it has: {has})"
                )
            change.require_free(values.get("name", manifest.name), manifest)
            left = sorted({*manifest.tags, *more} - {*fewer})
            manifest = dataclasses.replace(manifest, tags=tuple(left), **values)
            change.note(manifest)
        return manifest

    def remove(self, name: str) -> Manifest:
        """Moves an adapter to the trash, from which `restore` brings it back until `prune`.

        Raises:
            ConfigError: there is no such adapter.
        """
        with self._store.changing_one(name) as (change, manifest):
            change.to_trash(manifest)
        return manifest

    def restore(self, name: str, *, rename: str | None = None) -> Manifest:
        """Brings a removed adapter back, under another name if need be.

        Raises:
            ConfigError: there is no such adapter in the trash, or its name is taken now.
        """
        with self._store.changing_one(name, removed=True) as (change, manifest):
            manifest = dataclasses.replace(manifest, name=checked_name(rename or manifest.name))
            change.require_free(manifest.name, manifest)
            change.from_trash(manifest)
        return manifest

    def trash_bytes(self) -> int:
        """The size of what `prune` would delete."""
        return sum(folder_bytes(folder) for _, folder in self._store.objects.all(removed=True))

    def prune(self) -> list[Manifest]:
        """Deletes the trash for good; returns what was in it."""
        if not any(self._store.objects.all(removed=True)) and not self.removed():
            return []
        with self._store.disk_errors(), self._store.objects.staged() as aside, self._store.changing() as change:
            gone = change.index.all(removed=True)
            for digest, folder in list(self._store.objects.all(removed=True)):
                change.move(folder, aside / digest)
            for manifest in gone:
                change.index.forget(manifest.digest)
        return gone

    def search(
        self,
        text: str = "",
        *,
        base: "str | Path | Fingerprint | None" = None,
        task: str | None = None,
        tags: Iterable[str] = (),
        similar: "str | Adapter | None" = None,
        limit: int | None = 20,
        exact: int = 5,
    ) -> list[Found]:
        """The adapters that meet all conditions, the most similar, else the most relevant, else the newest first.

        Args:
            text: words, each of which begins a word of the name, task, tags, description, base or targets.
            base: what they were made for: the folder of a model, ``bundled``, a fingerprint, or a base's recorded name.
            task: the task.
            tags: all of these.
            similar: an adapter, or the name of one in the library, which is then left out. Adapters that are known to
                be of another base are left out; DoRA's are compared by s B A.
            limit: the most to return; None for all.
            exact: for how many of the nearest the cosine is computed from the factors; for others it is estimated.

        Raises:
            ConfigError: a base or adapter that is not there.
        """
        tags = checked_tags(tags)
        with self._store.reading() as index:
            bases = [] if base is None else [_base_match(index, base)]
            if similar is None:
                which = conditions(text=text, bases=bases, task=task, tags=tags, ranked=index.ranked)
                return [Found(manifest) for manifest in index.select(which, limit)]
            query = self._query(index, similar)
            which = conditions(
                text=text, bases=[*bases, *query.bases], task=task, tags=tags, but=query.digest, ranked=index.ranked
            )
            return nearest_first(index, which, query, self._load, limit=limit, exact=exact)

    def export(self, name: str, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes an adapter as a PEFT folder outside the library.

        Raises:
            ConfigError: there is no such adapter, or something is at `folder` already.
        """
        from weft.model.new_folder import check_output

        folder = Path(folder).expanduser()
        if folder.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(f"output: {folder} is inside the library; name a folder elsewhere")
        adapter = self.load(name)
        check_output(folder, overwrite, keep=[self.path])
        return adapter.save(folder)

    def lineage(self, name: str) -> Ancestor:
        """What an adapter was made from, as a tree; what is in the library is followed there.

        Raises:
            ConfigError: there is no such adapter.
        """
        with self._store.reading() as index:

            def known(digest: str) -> tuple[str, Any] | None:
                found = index.get(digest)
                return None if found is None or found[1] else (found[0].name, found[0].provenance.get("lineage"))

            return ancestors(self._store.find(index, name).digest, known)

    def verify(self, *, repair: bool = False, progress: Callable[[str], object] | None = None) -> "list[Problem]":
        """Reads every adapter again, and returns what is wrong: nothing, if the library is sound.

        Args:
            repair: make the index anew from the adapters, and delete what killed processes left.
            progress: called with each digest.

        Raises:
            FormatError: the index is of a newer weft, or with `repair` the disk does not take a new one.
        """
        from weft.library.verify import repaired, verify

        return (repaired if repair else verify)(self._store, progress or (lambda digest: None))

    def _load(self, digest: str) -> "Adapter":
        """An adapter that the index has, or had a moment ago: one that is being removed is read in the trash."""
        from weft.formats import load

        places = [self._store.objects.place(digest, removed=removed) for removed in (False, True, False)]
        for place in places[:-1]:
            try:
                return load(place)
            except FormatError:
                if place.exists():
                    raise
        return load(places[-1])

    def _query(self, index: Index, similar: "str | Adapter") -> Query:
        """What is asked for by an adapter, or by the name of one in the library."""
        if isinstance(similar, str):
            manifest = self._store.find(index, similar)
            row = index.base_of(manifest.digest)
            bases = [] if row is None else [BaseMatch(rows=[row], unknown=True)]
            return Query(index.sketch(manifest.digest), lambda: self._load(manifest.digest), bases, manifest.digest)
        from weft.library.base import rows_of_base
        from weft.library.sketch import sketch

        adapter = similar
        bases = [] if adapter.base is None else [BaseMatch(rows=rows_of_base(index, adapter.base), unknown=True)]
        return Query(sketch(adapter), lambda: adapter, bases)


def _base_match(index: Index, base: "str | Path | Fingerprint") -> BaseMatch:
    """Which of an index's bases are meant.

    Raises:
        ConfigError: it can only be a model's folder, and there is none.
    """
    from weft.bundled import bundled_base

    if not isinstance(base, str | Path):
        from weft.library.base import rows_of_base

        return BaseMatch(rows=rows_of_base(index, base))
    folder = bundled_base() if str(base) == "bundled" else Path(base).expanduser()
    if (folder / "config.json").is_file():
        from weft.library.base import matching_folder

        return matching_folder(index, str(base), folder)
    if isinstance(base, Path) or str(base)[:1] in ("/", ".", "~"):
        raise ConfigError(f"base: there is no model in {base}: no config.json there")
    return BaseMatch(names=[str(base)])
