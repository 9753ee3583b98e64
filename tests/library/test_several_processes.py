"""Several processes at once, and processes that are killed: the library is whole, and says what is left to do."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.digest import digest
from weft.errors import ConfigError, StateError
from weft.library import Library

from .values import adapter, same, sorts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads


def started(work: Callable[[], None]) -> int:
    """A process of its own that does the work; it ends with 0 if all went well."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_processes_that_add_tag_and_remove_at_once_lose_nothing(tmp_path: Path) -> None:
    place = tmp_path / "library"

    def write(number: int) -> None:
        library = Library(place, timeout=60)
        for i in range(4):
            library.add(adapter(10 * number + i), f"a{number}-{i}", tags=["new"])
            library.add(adapter(99), "shared", tags=[f"by{number}"])
            library.edit(f"a{number}-{i}", tags=["done"], drop_tags=["new"])
            library.edit("shared", tags=[f"by{number}-{i}"])
        library.remove(f"a{number}-0")
        library.remove(f"a{number}-1")
        library.restore(f"a{number}-1")

    def read() -> None:
        library, end = Library(place), time.monotonic() + 30
        while len(library.search(tags=["done"])) < 9 and time.monotonic() < end:
            for manifest in library.adapters():
                with contextlib.suppress(ConfigError):  # it was removed meanwhile
                    assert digest(library.load(manifest.digest)) == manifest.digest

    def check() -> None:
        library, end = Library(place, timeout=60), time.monotonic() + 30
        while len(library.search(tags=["done"])) < 9 and time.monotonic() < end:
            assert library.verify() == []

    children = [
        *(started(lambda number=number: write(number)) for number in range(3)), started(read), started(check)
    ]  # fmt: skip
    assert [ended(child) for child in children] == [0] * 5
    library = Library(place)
    assert library.names() == [*(f"a{n}-{i}" for n in range(3) for i in range(1, 4)), "shared"]
    assert len(library["shared"].tags) == 3 + 12
    assert [m.name for m in library.removed()].sort() == [f"a{n}-0" for n in range(3)].sort()
    assert library.verify() == []
    assert list((place / "staging").iterdir()) == []


def test_a_name_that_two_want_goes_to_one_of_them(tmp_path: Path) -> None:
    def write(number: int) -> None:
        Library(tmp_path / "library").add(adapter(number), "name")

    codes = [ended(child) for child in [started(lambda number=number: write(number)) for number in range(3)]]
    assert sorted(codes) == [0, 1, 1]
    library = Library(tmp_path / "library")
    assert same(library.load("name"), adapter(codes.index(0)))
    assert len(library) == 1
    assert library.verify() == []


_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
CHANGES: dict[str, Callable[[Library], object]] = {
    "replace": lambda library: library.add(adapter(1), "old", replace=True),
    "edit": lambda library: library.edit("old", rename="older", tags=["t"]),
    "remove": lambda library: library.remove("old"),
    "restore": lambda library: library.restore("trashed"),
    "prune": lambda library: library.prune(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_killed_at_any_step_of_a_change_leaves_whole_adapters(change: str, tmp_path: Path) -> None:
    before = Library(tmp_path / "before")
    before.add(adapter(0), "old")
    before.add(adapter(2), "trashed")
    before.remove("trashed")
    kept = {digest(adapter(0)), *([] if change == "prune" else [digest(adapter(2))])}
    for step in range(1, 40):
        library = Library(shutil.copytree(before.path, tmp_path / str(step)))

        def killed(library: Library = library, step: int = step) -> None:
            steps = 0

            def interrupt(event: str, _: object) -> None:
                nonlocal steps
                steps += event in _EVENTS
                if event in _EVENTS and steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(interrupt)
            CHANGES[change](library)

        code = ended(started(killed))
        if code and change != "restore" and step % 2:
            with contextlib.suppress(ConfigError):  # it was done, up to saying so
                CHANGES[change](library)  # simply once more
        for path in (library.path / "staging").iterdir():
            os.utime(path, (0, 0))
        problems = library.verify(repair=True)
        assert set(sorts(problems)) <= {"stray", "index", "missing", "leftover"}, "nothing is half there"
        assert all(problem.repaired for problem in problems)
        assert list((library.path / "staging").iterdir()) == []
        assert kept <= {manifest.digest for manifest in [*library.adapters(), *library.removed()]}, "nothing is lost"
        assert all(digest(library.load(name)) == library[name].digest for name in library.names())
        if code == 0:
            assert step > 2
            return
        assert code == -signal.SIGKILL
    raise AssertionError("it never ended by itself")


@pytest.mark.parametrize("change", ["add", "edit"])
def test_a_process_killed_while_it_writes_leaves_nothing_half_written(change: str, tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    before = library.add(adapter(0), "old").manifest

    def killed() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # a file that grows beyond the limit kills, at that very byte
        resource.setrlimit(resource.RLIMIT_FSIZE, (33_000, 33_000))
        if change == "add":
            library.add(adapter(1, rank=200), "big")
        else:
            library.edit("old", description="long " * 20_000)

    assert ended(started(killed)) == -signal.SIGXFSZ
    assert library.adapters() == [before]
    assert library.verify() == []
    assert same(library.load("old"), adapter(0))
    assert len(list((library.path / "staging").iterdir())) >= 1, "what it was writing is set aside"


def test_an_adapter_is_read_while_it_is_removed_and_a_removal_that_was_cut_short_can_be_done_again(
    tmp_path: Path,
) -> None:
    library = Library(tmp_path / "library")
    library.add(adapter(0), "one")
    (library.path / "trash").mkdir()
    shutil.move(library.folder("one"), library.path / "trash")  # as between the move and its commit
    assert same(library.load("one"), adapter(0))
    assert set(sorts(library.verify())) == {"index", "missing"}
    library.remove("one")
    assert library.names() == library.verify() == []
    library.restore("one")
    assert same(library.load("one"), adapter(0))
    assert library.verify() == []


def test_a_locked_library_says_so_and_can_be_read(tmp_path: Path) -> None:
    library = Library(tmp_path / "library", timeout=0.05)
    library.add(adapter(0), "one")
    holder = sqlite3.connect(library.path / "index.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for change in (
        lambda: library.add(adapter(1), "two"),
        lambda: library.edit("one", tags=["t"]),
        lambda: library.remove("one"),
    ):
        with pytest.raises(StateError, match=r"is in use: another process was writing to it for 0\.05 seconds"):
            change()
    assert library.names() == ["one"]
    assert same(library.load("one"), adapter(0))
    holder.execute("ROLLBACK")
    holder.close()
    assert list((library.path / "staging").iterdir()) == []
    assert library.verify() == []
    library.add(adapter(1), "two")
