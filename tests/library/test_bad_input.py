"""Bad input and a bad disk: one message each, and the library is as it was."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weft import LowRank
from weft.digest import digest
from weft.errors import ConfigError, FormatError, WeftError
from weft.library import Library

from .values import adapter, files


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "library")
    library.add(adapter(0), "summarize")
    return library


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(value: float, library: Library) -> None:
    before = files(library.path)
    made = adapter(1)
    spoiled = {**made.factors, "layers.1.q": LowRank(torch.full((12, 2), value), torch.ones(2, 8))}
    with pytest.raises(ConfigError, match=r"holds NaN or infinity in 1 of its parts, first in 'layers\.1\.q'"):
        library.add(replace(made, factors=spoiled), "bad")
    assert files(library.path) == before


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda library: library["sumarize"],
            r"no adapter 'sumarize' in the library at .*; did you mean 'summarize'\?",
        ),
        (lambda library: library.load("sumarize"), "did you mean 'summarize'"),
        (lambda library: library.remove("sumarize"), "did you mean 'summarize'"),
        (lambda library: library.edit("sumarize", tags=["t"]), "did you mean 'summarize'"),
        (lambda library: library.search(similar="sumarize"), "did you mean 'summarize'"),
        (lambda library: library.restore("summarize"), "no adapter 'summarize' in the trash of the library"),
        (lambda library: library.add(adapter(1)), "an adapter that comes from no file needs one"),
        (lambda library: library.add(adapter(1), "a/b"), r"letters, digits and \. _ \+ -, .* found 'a/b'"),
        (lambda library: library.add(adapter(1), "x", tags=["two words"]), "found 'two words'"),
        (lambda library: library.add(adapter(1), "x", tags="word"), r"write \['word'\]"),
        (lambda library: library.edit("summarize", rename=".x"), "found '.x'"),
        (lambda library: library.add(library.path / "nothing"), "there is no adapter at"),
        (lambda library: library.add(library.path), "holds no adapter"),
    ],
)
def test_one_message_that_names_it(attempt: Callable[[Library], object], message: str, library: Library) -> None:
    before = files(library.path)
    with pytest.raises(WeftError, match=message):
        attempt(library)
    assert files(library.path) == before


def test_a_folder_that_is_no_library_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    for place in (tmp_path / "photos", tmp_path / "photos" / "cat.png"):
        with pytest.raises(ConfigError, match="is no library of adapters"):
            Library(place)
    assert files(tmp_path) == {tmp_path / "photos" / "cat.png": b"x"}


def test_an_empty_place_is_an_empty_library(tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    assert (library.names(), library.search("x"), library.removed(), library.verify(), len(library)) == (
        [],
        [],
        [],
        [],
        0,
    )
    with pytest.raises(ConfigError, match="which is empty"):
        library.remove("x")
    assert library.prune() == []
    assert not library.path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"mounting a disk needs root: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    library = Library(small_disk / "library")
    library.add(adapter(0), "n0")

    def fill() -> None:
        for i in range(1, 100):
            library.add(adapter(i), f"n{i}")

    with pytest.raises(FormatError, match=r"cannot write to .*(No space left on device|disk is full|I/O error)"):
        fill()
    names = library.names()
    assert 1 <= len(names) < 30
    for name in names:
        assert digest(library.load(name)) == library[name].digest
    assert library.verify() == []
    assert list((library.path / "staging").iterdir()) == []
    library.remove(names[-1]) if len(names) > 1 else None


def test_a_write_that_the_system_refuses_is_undone(library: Library) -> None:
    before = files(library.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = adapter(1, rank=200)
    resource.setrlimit(resource.RLIMIT_FSIZE, (33_000, hard))  # as a full disk; SQLite needs 32 kB
    try:
        with pytest.raises(FormatError, match="cannot write to"):
            library.add(big, "big")
        with pytest.raises(FormatError, match="cannot write"):
            library.edit("summarize", tags=["t"], description="long " * 20_000)  # the record does not fit
        with pytest.raises(FormatError, match="cannot write"):
            library.edit("summarize", tags=["t"], description="long " * 2_000)  # it does, and the index's log does not
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert library.names() == ["summarize"]
    assert library["summarize"].tags == ()
    kept = {path: data for path, data in files(library.path).items() if not path.name.startswith("index.sqlite")}
    assert kept == {path: data for path, data in before.items() if not path.name.startswith("index.sqlite")}
    assert library.verify() == []


def test_a_library_in_a_read_only_place_is_read_as_it_is(small_disk: Path) -> None:
    library = Library(small_disk / "library")
    library.add(adapter(0), "one", tags=["t"])
    library.add(adapter(1), "two")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        assert library.names() == ["one", "two"]
        assert [found.manifest.name for found in library.search("one", tags=["t"])] == ["one"]
        assert [found.manifest.name for found in library.search(similar="one")] == ["two"]
        assert digest(library.load("one")) == library["one"].digest
        assert library.verify() == []
        for change in (
            lambda: library.add(adapter(2), "three"),
            lambda: library.remove("one"),
            lambda: library.edit("one", tags=["u"]),
        ):
            with pytest.raises(FormatError, match=r"cannot write to .*library.*[Rr]ead-only"):
                change()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert library.verify() == []
    library.remove("one")
