"""Saving is complete or not at all: a full disk, a killed process, a folder with other things in it."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import weft
from weft.errors import FormatError

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def _adapter(value: float, rank: int = 2, width: int = 8) -> weft.Adapter:
    """An adapter of which every number tells which one it is."""
    factors = weft.LowRank(torch.full((width, rank), value), torch.full((rank, width), value), value)
    return weft.Adapter(weft.LoRAConfig(targets=("q",)), {"x.q": factors}, {"x.q": weft.Layout()})


def _which(folder: Path) -> float:
    """Which adapter stands there; its tensors and its scaling must be of one."""
    factors = weft.load(folder).factors["x.q"]
    value = float(factors.A[0, 0])
    assert bool((value == factors.A).all())
    assert bool((value == factors.B).all())
    assert factors.scaling == value
    return value


@contextmanager
def _no_file_larger_than(size: int) -> Iterator[None]:
    """A limit of the operating system: a write beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"mounting a disk needs root: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside other files"])
def test_a_write_that_fails_leaves_the_old_adapter(other: bool, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    _adapter(1.0).save(folder)
    if other:
        (folder / "tokenizer.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with _no_file_larger_than(20_000), pytest.raises(FormatError, match=r"cannot write to .*adapter: File too large"):
        _adapter(2.0, width=4000).save(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    assert _which(folder) == 1


def test_a_new_folder_is_not_there_after_a_write_that_fails(tmp_path: Path) -> None:
    with _no_file_larger_than(20_000), pytest.raises(FormatError, match="cannot write"):
        _adapter(2.0, width=4000).save(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(small_disk: Path) -> None:
    folder = small_disk / "adapter"
    _adapter(1.0).save(folder)
    with pytest.raises(FormatError, match=r"No space left on device \(0\.\d MB are free there\)"):
        _adapter(2.0, width=20_000).save(folder)
    assert list(small_disk.iterdir()) == [folder]
    assert _which(folder) == 1
    _adapter(3.0).save(folder)
    assert _which(folder) == 3


def test_a_mount_point_itself_can_hold_an_adapter(small_disk: Path) -> None:
    for value in (1.0, 2.0):
        _adapter(value).save(small_disk)
        assert {path.name for path in small_disk.iterdir()} == FILES
        assert _which(small_disk) == value


def test_the_working_directory_can_hold_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0):
        _adapter(value).save(Path())
        assert {path.name for path in Path().iterdir()} == FILES
        assert _which(tmp_path) == value


def test_an_adapter_is_replaced_by_the_next(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        _adapter(value).save(tmp_path / "deep/adapter")
        assert _which(tmp_path / "deep/adapter") == value
        assert {path.name for path in (tmp_path / "deep/adapter").iterdir()} == FILES
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["adapter"]


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10/optimizer.pt").write_bytes(b"x")
    (tmp_path / "tokenizer.json").write_text("{}")
    for value in (1.0, 2.0):
        _adapter(value).save(tmp_path)
        assert _which(tmp_path) == value
        assert {path.name for path in tmp_path.iterdir()} == FILES | {"checkpoint-10", "tokenizer.json"}
    assert (tmp_path / "checkpoint-10/optimizer.pt").read_bytes() == b"x"


def test_a_readme_of_ones_own_stays(tmp_path: Path) -> None:
    folder = _adapter(1.0).save(tmp_path / "adapter")
    assert "weft" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    _adapter(2.0).save(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert _which(folder) == 2


def test_the_folder_keeps_its_permissions(tmp_path: Path) -> None:
    folder = _adapter(1.0).save(tmp_path / "adapter")
    folder.chmod(0o2770)
    _adapter(2.0).save(folder)
    assert folder.stat().st_mode & 0o7777 == 0o2770


def test_a_link_to_the_folder_stays_a_link(tmp_path: Path) -> None:
    _adapter(1.0).save(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    _adapter(2.0).save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert _which(tmp_path / "v1") == 2


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(FormatError, match="a file is there"):
        _adapter(1.0).save(tmp_path / "adapter")
    assert (tmp_path / "adapter").read_text() == "mine"


_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def _save_interrupted(adapter: weft.Adapter, folder: Path, step: int, by: Callable[[], None]) -> str:
    """Saves in a process of its own, with `by` called before the `step`-th change to a folder; how it ended."""
    child = os.fork()
    if child == 0:
        steps = 0

        def interrupt(event: str, _: object) -> None:
            nonlocal steps
            steps += event in _EVENTS
            if event in _EVENTS and steps == step:
                by()

        sys.addaudithook(interrupt)
        try:
            adapter.save(folder)
        except FormatError:
            os._exit(1)
        os._exit(0 if steps < step else 2)
    status = os.waitpid(child, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else ("uninterrupted", "refused", "saved")[os.WEXITSTATUS(status)]


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _be_refused() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside other files"])
def test_an_error_at_any_step_of_saving_leaves_the_old_adapter_or_the_new(other: bool, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    ends = []
    for step in range(1, 50):
        _adapter(1.0).save(folder)
        if other:
            (folder / "tokenizer.json").write_text("{}")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        ends.append(_save_interrupted(_adapter(2.0), folder, step, _be_refused))
        if ends[-1] == "refused":
            assert {path: path.read_bytes() for path in folder.iterdir()} == before
            assert list(tmp_path.iterdir()) == [folder]
        else:
            assert _which(folder) == 2
        for leftover in [*tmp_path.glob(".adapter.*"), *folder.glob(".adapter.*")]:
            shutil.rmtree(leftover)
        if ends[-1] == "uninterrupted":
            break
    assert ends[-1] == "uninterrupted"
    assert ends.count("refused") >= 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads: the child does nothing else
@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside other files"])
def test_a_process_killed_at_any_step_of_saving_leaves_a_complete_adapter(other: bool, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    seen = []
    for step in range(1, 50):
        _adapter(1.0).save(folder)
        if other:
            (folder / "tokenizer.json").write_text("{}")
        end = _save_interrupted(_adapter(2.0), folder, step, _be_killed)
        # Between two renames the one or the other is complete under a hidden name; what bears the folder's own name
        # is never a mixture, and at worst, beside other files, not all there.
        hidden = [*tmp_path.glob(".adapter.*"), *folder.glob(".adapter.*")]
        found = {}
        for place in [folder] * folder.exists() + hidden:
            try:
                found[place] = _which(place)
            except FormatError:
                assert other or place != folder
        assert found
        assert set(found.values()) <= {1.0, 2.0}
        assert not other or (folder / "tokenizer.json").read_text() == "{}"
        seen.append(found.get(folder))
        for leftover in hidden:
            shutil.rmtree(leftover)
        if end == "uninterrupted":
            break
    assert end == "uninterrupted"
    assert len(seen) > 3
    assert seen[0] == 1
    assert seen[-1] == 2


def test_a_file_that_cannot_be_moved_brings_the_others_back(small_disk: Path) -> None:
    folder = small_disk / "adapter"
    _adapter(1.0).save(folder)
    (folder / "tokenizer.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    pinned = folder / "README.md"  # the last to be moved out
    subprocess.run(["mount", "--bind", pinned, pinned], check=True)
    try:
        with pytest.raises(FormatError, match="Device or resource busy; what was there before is there as it was"):
            _adapter(2.0).save(folder)
    finally:
        subprocess.run(["umount", pinned], check=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md"])
def test_a_folder_in_the_place_of_a_file_is_not_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter" / name).mkdir(parents=True)
    (tmp_path / "adapter" / name / "mine").write_text("mine")
    if name == "README.md":
        assert _which(_adapter(1.0).save(tmp_path / "adapter")) == 1
    else:
        with pytest.raises(FormatError, match=r"adapter_config\.json is a folder"):
            _adapter(1.0).save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / name / "mine").read_text() == "mine"
