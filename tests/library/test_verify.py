"""`verify` names every damaged, missing and stray adapter, and makes the index anew from the adapters alone."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from weft.digest import digest
from weft.errors import FormatError
from weft.library import Library

from .values import adapter, base, files, same, sorts


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "library")
    library.add(adapter(0, base(0)), "one", tags=["t"], task="chat")
    library.add(adapter(1, base(0)), "two")
    library.add(adapter(2, base(1)), "gone")
    library.remove("gone")
    return library


def state(library: Library) -> object:
    similar = [found.manifest.name for found in library.search(similar="one", exact=0)]
    return (
        library.adapters(),
        library.removed(),
        similar,
        library.search(base=base(0)),
        library.search("chat", tags=["t"]),
    )


FILES = ["adapter_model.safetensors", "adapter_config.json", "README.md", "weft.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.3, 0.97])
def test_a_flipped_byte_is_found_wherever_it_is(name: str, where: float, library: Library) -> None:
    path = library.folder("two") / name
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    (problem,) = library.verify()
    assert (problem.sort, problem.name, problem.digest) == ("damaged", "two", library["two"].digest)
    assert name in problem.message
    (problem,) = library.verify(repair=True)
    if name != "weft.json":
        assert not problem.repaired
        assert library.add(adapter(1, base(0)), "two").mended
    else:
        assert problem.repaired, "it is made again from the index and the adapter"
    assert library.verify() == []
    assert same(library.load("two"), adapter(1, base(0)))


def test_a_damaged_adapter_that_is_added_again_keeps_what_is_said_of_it(library: Library) -> None:
    said = library["one"]
    (library.folder("one") / "adapter_model.safetensors").unlink()
    assert library.add(adapter(0, base(0)), "one").manifest == said
    shutil.rmtree(library.folder("one"))
    assert library.add(adapter(0, base(0)), "one").mended
    assert library["one"] == said
    assert library.verify() == []


def test_an_adapter_at_the_address_of_another_is_found(library: Library) -> None:
    (library.path / "objects" / "00").mkdir()
    shutil.move(library.folder("two"), library.path / "objects" / "00" / ("0" * 64))
    problems = {problem.sort: problem for problem in library.verify()}
    assert problems.keys() == {"damaged", "missing"}
    assert f"holds another adapter: its digest is {library['two'].digest}" in problems["damaged"].message


def test_missing_stray_and_abandoned_are_told_apart(library: Library, tmp_path: Path) -> None:
    shutil.copytree(library.folder("one"), tmp_path / "copy")
    digest = library["one"].digest
    shutil.rmtree(library.folder("one"))
    (library.path / "objects" / "notes.txt").write_text("mine")
    left = library.path / "staging" / "abc"
    left.mkdir()
    fresh = library.path / "staging" / "def"
    fresh.mkdir()
    os.utime(left, (0, 0))
    problems = library.verify()
    assert sorted(sorts(problems)) == ["leftover", "missing", "stray"]
    assert next(problem for problem in problems if problem.sort == "missing").digest == digest
    library.verify(repair=True)
    assert library.names() == ["two"]
    assert not left.exists()
    assert fresh.exists(), "somebody may be writing there"
    assert (library.path / "objects" / "notes.txt").read_text() == "mine"
    assert sorts(library.verify()) == ["stray"]

    shutil.move(tmp_path / "copy", library.path / "objects" / digest[:2] / digest)
    (problem, _) = sorted(library.verify(), key=lambda problem: problem.digest is None)
    assert (problem.sort, problem.name) == ("stray", "one")
    assert sorted(problem.repaired for problem in library.verify(repair=True)) == [False, True]
    assert library["one"].tags == ("t",)


def test_an_index_that_says_other_than_the_adapter_is_found(library: Library) -> None:
    with sqlite3.connect(library.path / "index.sqlite") as connection:
        connection.execute("UPDATE manifests SET manifest = replace(manifest, 'chat', 'cat')")
    connection.close()
    assert library["one"].task == "cat"
    (problem,) = library.verify()
    assert (problem.sort, problem.name) == ("index", "one")
    assert library.verify(repair=True)[0].repaired
    assert library["one"].task == "chat"


@pytest.mark.parametrize("how", ["gone", "garbage", "a flipped page", "foreign", "empty"])
def test_an_index_can_be_made_anew_from_the_adapters_alone(how: str, library: Library) -> None:
    before = state(library)
    path = library.path / "index.sqlite"
    data = path.read_bytes()
    path.unlink()
    if how == "garbage":
        path.write_bytes(b"not a database at all, but long enough" * 100)
    elif how == "a flipped page":
        path.write_bytes(data[:4096] + bytes(reversed(data[4096:])))
    elif how == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (x)")
        connection.close()
    elif how == "empty":
        path.touch()
    if how != "empty":
        with pytest.raises(FormatError, match="`weft library verify --repair` makes"):
            library.search(tags=["t"])
        with pytest.raises(FormatError, match="`weft library verify --repair` makes"):
            library.edit("one", tags=["u"])
    objects = files(library.path / "objects")
    found = library.verify()
    assert sorts(found) == (["stray"] * 3 if how == "empty" else ["index"])
    assert all(problem.repaired for problem in library.verify(repair=True))
    assert state(library) == before
    assert library.verify() == []
    assert files(library.path / "objects") == objects


def test_an_adapter_of_which_nothing_is_known_any_more_is_described_again(library: Library) -> None:
    (library.folder("two") / "weft.json").write_text("{")
    (library.path / "index.sqlite").unlink()
    library.verify(repair=True)
    name = f"adapter-{digest(adapter(1, base(0)))[:8]}"
    assert library.names() == [name, "one"]
    assert same(library.load(name), adapter(1, base(0)))
    assert library.verify() == []


def test_a_newer_index_is_left_alone(library: Library) -> None:
    path = library.path / "index.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    for attempt in (library.names, library.verify, lambda: library.verify(repair=True), lambda: library.remove("one")):
        with pytest.raises(FormatError, match=r"a newer weft \(schema 99, known here: 1\); upgrade weft"):
            attempt()
    assert path.read_bytes() == before


def test_a_record_of_a_newer_weft_is_left_alone(library: Library) -> None:
    record = library.folder("one") / "weft.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 9', 1))
    before = record.read_bytes()
    (problem,) = library.verify()
    assert "newer weft" in problem.message
    with pytest.raises(FormatError, match="newer weft"):
        library.verify(repair=True)
    assert record.read_bytes() == before
