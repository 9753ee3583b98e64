"""A library gives back what was put in, under its name, with what is known of it; and what is removed comes back."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weft
from weft.digest import digest
from weft.errors import ConfigError
from weft.library import Library, default_place

from .values import adapter, base, files, run_folder, same


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def test_what_was_added_comes_back(library: Library) -> None:
    a = adapter(0, base(0), base="org/model", task="chat", license="mit")
    added = library.add(a, "first", tags=["good", "old"], description="Short answers", metrics={"loss": 1.5})
    assert added.new
    found = library["first"]
    assert found == added.manifest == library[digest(a)[:8]]
    assert (found.name, found.digest, found.base, found.task) == ("first", digest(a), "org/model", "chat")
    assert (found.licence, found.tags, found.description, found.metrics) == (
        "mit",
        ("good", "old"),
        "Short answers",
        {"loss": 1.5},
    )
    assert (found.ranks, found.targets, found.modules) == ((2, 2), ("q", "v"), 3)
    assert (found.parameters, found.nbytes) == (a.num_parameters, a.nbytes)
    assert found.norm == pytest.approx(a.norm(), rel=1e-6)
    assert a.base is not None
    assert found.fingerprint == a.base.structure
    back = library.load("first")
    assert same(back, a)
    assert back.base == a.base
    assert back.provenance == a.provenance
    assert "first" in library
    assert len(library) == 1
    assert library.verify() == []


def test_another_library_object_and_a_path_see_the_same(library: Library, tmp_path: Path) -> None:
    adapter(0).save(tmp_path / "saved" / "adapter")
    library.add(tmp_path / "saved")
    other = Library(str(tmp_path / "library"))
    assert other.names() == ["saved"]  # not "adapter": a run's folder says more
    assert weft.load(other.folder("saved")).factors.keys() == adapter(0).factors.keys()


def test_a_runs_metrics_and_data_are_noted(library: Library, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "weft"}\n')
    lines = [{"step": 0, "eval_loss": 5.0}, {"step": 9, "loss": 4.0}, {"step": 9, "final": True, "eval_loss": 3.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    found = library.add(run_folder(tmp_path / "one", adapter(0), text, data)).manifest
    assert (found.name, found.metrics, found.data) == ("one", {"loss": 3.0}, str(data))
    assert found.data_sha256 == hashlib.sha256(data.read_bytes()).hexdigest()

    folder = run_folder(tmp_path / "two", adapter(1), text, data)
    later = (folder / "config.yaml").stat().st_mtime + 10
    os.utime(data, (later, later))
    assert library.add(folder).manifest.data_sha256 is None, "the data is other than what was trained on"


def test_the_same_adapter_is_not_added_twice(library: Library, tmp_path: Path) -> None:
    a = adapter(0)
    first = library.add(a, "first", tags=["x"]).manifest
    again = library.add(a.save(tmp_path / "copy"), "first", tags=["y"], task="chat")
    assert not again.new
    assert again.manifest == library["first"] == replace(first, tags=("x", "y"), task="chat")
    assert library.add(a.save(tmp_path / "other")).manifest.name == "first", "no name was asked for"
    with pytest.raises(ConfigError, match=r"already, as 'first'; `weft library tag first --rename second`"):
        library.add(a, "second")
    assert len(library) == 1
    assert library.verify() == []


def test_a_taken_name_is_refused_or_replaced(library: Library) -> None:
    a, b = adapter(0), adapter(1)
    library.add(a, "name")
    with pytest.raises(ConfigError, match=r"name: 'name' is another adapter .* pass --replace"):
        library.add(b, "name")
    assert same(library.load("name"), a)
    done = library.add(b, "name", replace=True)
    assert done.replaced is not None
    assert same(library.load("name"), b)
    assert [m.digest for m in library.removed()] == [digest(a)] == [done.replaced.digest]
    with pytest.raises(ConfigError, match="'name' is another adapter"):
        library.restore("name")
    assert library.restore("name", rename="older").name == "older"
    assert same(library.load("older"), a)
    assert library.verify() == []


def test_removed_is_recoverable_until_pruned(library: Library) -> None:
    library.add(adapter(0), "gone", tags=["t"])
    library.add(adapter(1), "kept")
    before = files(library.path / "objects")
    library.remove("gone")
    assert library.names() == ["kept"]
    assert library.search(tags=["t"]) == []
    with pytest.raises(ConfigError, match="it was removed, and `weft library restore gone` brings it back"):
        library.load("gone")
    assert library.verify() == []
    library.restore("gone")
    assert files(library.path / "objects") == before
    assert [found.manifest.name for found in library.search(tags=["t"])] == ["gone"]

    library.remove("gone")
    size = library.trash_bytes()
    assert size == sum(map(len, files(library.path / "trash").values())) > 0
    assert [m.name for m in library.prune()] == ["gone"]
    assert library.trash_bytes() == 0
    assert list((library.path / "trash").iterdir()) == list((library.path / "staging").iterdir()) == []
    with pytest.raises(ConfigError, match="there is no adapter 'gone' in the trash"):
        library.restore("gone")
    assert library.prune() == []
    assert library.verify() == []


def test_a_removed_adapter_that_is_added_again_is_back_with_what_is_said_now(library: Library) -> None:
    library.add(adapter(0), "old", tags=["old"])
    library.remove("old")
    assert library.add(adapter(0), "new", tags=["new"]).new
    assert library["new"].tags == ("new",)
    assert library.removed() == []
    assert library.verify() == []


def test_several_of_one_name_in_the_trash_are_told_apart_by_their_digests(library: Library) -> None:
    for seed in (0, 1):
        library.add(adapter(seed), "name")
        library.remove("name")
    with pytest.raises(ConfigError, match="could be several") as raised:
        library.restore("name")
    assert digest(adapter(0))[:12] in str(raised.value)
    library.restore(digest(adapter(0))[:12])
    assert same(library.load("name"), adapter(0))


def test_what_is_said_can_be_changed(library: Library) -> None:
    library.add(adapter(0), "first", tags=["a", "b"], task="chat")
    library.add(adapter(1), "second")
    found = library.edit(
        "first", rename="third", tags=["c"], drop_tags=["a"], task="", licence="mit", description="new"
    )
    assert found == library["third"]
    assert (found.tags, found.task, found.licence, found.description) == (("b", "c"), None, "mit", "new")
    assert [each.manifest.name for each in library.search("third")] == ["third"]
    assert library.search("first") == library.search(task="chat") == []
    with pytest.raises(ConfigError, match=r"third has no tag 'bb'; did you mean 'b'\? \(it has: b, c\)"):
        library.edit("third", drop_tags=["bb"])
    with pytest.raises(ConfigError, match="'second' is another adapter"):
        library.edit("third", rename="second")
    assert library["third"] == found
    assert library.verify() == []


def test_export_is_a_plain_peft_folder(library: Library, tmp_path: Path) -> None:
    library.add(adapter(0), "one")
    library.export("one", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert same(weft.load(tmp_path / "out"), adapter(0))
    library.add(adapter(1), "two")
    with pytest.raises(ConfigError, match="not empty"):
        library.export("two", tmp_path / "out")
    library.export("two", tmp_path / "out", overwrite=True)
    assert same(weft.load(tmp_path / "out"), adapter(1))
    with pytest.raises(ConfigError, match="inside the library"):
        library.export("two", library.path / "out")


def test_lineage_is_a_tree_over_what_is_and_was_there(library: Library) -> None:
    a, b = adapter(0), adapter(1)
    library.add(a, "a")
    both = weft.combine([a, b], weights=[0.75, 0.25])
    library.add(both, "both")
    library.add(weft.resize(weft.load(library.folder("both")), rank=1), "small")
    library.edit("a", rename="renamed")
    tree = library.lineage("small")
    assert (tree.name, tree.in_library, tree.operation) == ("small", True, "resize (limit [rank 1])")
    (middle,) = tree.inputs
    assert (middle.name, middle.digest, middle.operation) == ("both", digest(both), "combine (method linear)")
    first, second = middle.inputs
    assert (first.name, first.weight, first.in_library, first.digest) == ("renamed", 0.75, True, digest(a))
    assert (second.name, second.weight, second.in_library, second.digest) == (None, 0.25, False, digest(b))
    library.remove("both")
    (middle,) = library.lineage("small").inputs
    assert not middle.in_library
    assert [each.name for each in middle.inputs] == ["renamed", None], "as the adapter itself remembers"
    json.dumps(tree.to_dict())


def test_a_lineage_that_says_nonsense_does_no_harm(library: Library) -> None:
    loop = {"operation": "x", "inputs": [{"digest": 5, "weight": "much"}, "what", None]}
    strange = replace(adapter(0), provenance={"lineage": loop})
    library.add(strange, "strange")
    (one,) = library.lineage("strange").inputs
    assert (one.name, one.digest, one.weight) == (None, None, None)


def test_adapters_of_every_kind_are_kept(library: Library) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Conv1d(8, 4, 3), torch.nn.Linear(6, 4))
    config = weft.LoRAConfig(rank=2, targets=("0", "1", "2"), bias="adapted", variant=weft.DoRA())
    made = weft.collect(weft.attach(model, config))
    zero = library.add(made, "zero").manifest
    assert zero.norm == 0
    assert digest(library.load("zero")) == digest(made) == zero.digest
    with pytest.raises(ConfigError, match="change of the weights is zero"):
        library.search(similar="zero")
    assert library.verify() == []


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEFT_LIBRARY", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_place() == tmp_path / ".local" / "share" / "weft" / "library"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_place() == tmp_path / "data" / "weft" / "library"
    monkeypatch.setenv("WEFT_LIBRARY", "~/mine")
    assert default_place() == tmp_path / "mine" == Library().path
    assert not (tmp_path / "mine").exists(), "looking makes nothing"
