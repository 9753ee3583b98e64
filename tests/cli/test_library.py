"""`weft library`, and names of the library wherever a command takes an adapter."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import weft
from weft.cli.adapters import adapter_path, named_paths
from weft.errors import ConfigError, FormatError
from weft.library import Library

from .conftest import Made, Run, python

COMMANDS = ("add", "list", "search", "show", "tag", "remove", "restore", "prune", "verify", "export")


@pytest.fixture
def library(llama: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The default library, with one adapter under the name `mine`."""
    monkeypatch.setenv("WEFT_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setenv("COLUMNS", "120")
    library = Library()
    library.add(llama.adapter, "mine", tags=["good"], task="chat")
    return library


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_prints_json(command: str, run: Run) -> None:
    result = run("library", command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "--library" in result.stdout


def test_a_life_in_the_library(llama: Made, run: Run, library: Library, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        result = run("library", *words)
        assert result.exit_code == 0, result.output
        return result.stdout

    smaller = run("resize", "mine", "--rank", 1, "--output", tmp_path / "small", "--json")
    assert smaller.exit_code == 0, smaller.output
    assert "added small: 14 modules" in said(
        "add", tmp_path / "small", "--tag", "a,b", "--description", "Just [one] rank"
    )
    assert "in the library already: small" in said("add", tmp_path / "small")
    listed = said("list").splitlines()
    assert [line.split()[0] for line in listed] == ["name", "small", "mine"]
    assert "small" in said("search", "just", "--tag", "a")
    assert "meets all of this" in said("search", "just", "--tag", "good")
    shown = said("show", "small")
    for text in ("Just [one] rank", "a, b", library["small"].digest, "<- resize (limit [rank 1])", "└── mine"):
        assert text in shown
    assert said("tag", "small", "c", "--drop", "a", "--rename", "tiny") == "tiny: b, c\n"
    (found,) = json.loads(said("search", "--similar", "mine", "--json"))["found"]
    assert (found["adapter"]["name"], found["standard_error"]) == ("tiny", 0)
    similar = said("search", "--similar", llama.adapter_path, "--exact", 1).splitlines()
    assert similar[1].split()[:2] == ["mine", "1.000"]
    assert similar[2].split()[2] == "±"
    assert "`weft library restore tiny`" in said("remove", "tiny")
    assert "tiny" in said("list", "--removed")
    assert said("restore", "tiny") == "restored tiny\n"
    assert said("export", "tiny", tmp_path / "out") == f"wrote {tmp_path / 'out'}\n"
    assert weft.load(tmp_path / "out").num_parameters == library["tiny"].parameters
    said("remove", "tiny")
    kept = run("library", "prune", input="n\n")
    assert kept.exit_code == 0
    assert kept.stdout.endswith("nothing was deleted\n")
    assert "Delete 1 adapter, " in kept.stderr
    assert len(library.removed()) == 1
    assert "deleted 1 adapter" in said("prune", "--yes")
    assert said("prune") == "the trash is empty\n"
    assert said("verify") == "1 adapter, all sound\n"
    assert library.names() == ["mine"]


def test_verify_exits_with_1_and_names_the_damage(run: Run, library: Library) -> None:
    path = library.folder("mine") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = run("library", "verify")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"damaged mine: {path} is not what was written there")
    (problem,) = json.loads(run("library", "verify", "--json").stdout)["problems"]
    assert (problem["sort"], problem["name"], problem["repaired"]) == ("damaged", "mine", False)


def test_documents_hold_what_python_says(run: Run, library: Library) -> None:
    manifest = json.loads(json.dumps(library["mine"].to_dict()))
    assert json.loads(run("library", "list", "--json").stdout) == {
        "library": str(library.path), "adapters": [manifest], "total": 1
    }  # fmt: skip
    shown = json.loads(run("library", "show", "mine", "--json").stdout)
    assert shown["adapter"] == manifest
    assert shown["lineage"] == library.lineage("mine").to_dict()
    assert json.loads(run("library", "tag", "mine", "x", "--json").stdout)["adapter"]["tags"] == ["good", "x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "mime"], "did you mean 'mine'?"),
        (["remove", "mime"], "did you mean 'mine'?"),
        (["search", "--similar", "mime"], "did you mean 'mine'?"),
        (["tag", "mine"], "nothing to change was given"),
        (["tag", "mine", "--drop", "goof"], "did you mean 'good'?"),
        (["list", "--library", os.devnull], "is no library of adapters"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], message: str, library: Library, fail: Callable[..., str]) -> None:
    assert message in fail("library", *words)


def test_every_command_takes_names(llama: Made, run: Run, library: Library, tmp_path: Path, pairs: Path) -> None:
    words = ("--base", llama.base, "--greedy", "--max-new-tokens", 4, "--prompt", "the weft", "--json")
    turns = []
    for adapter in ("mine", f"mine={llama.adapter_path}", f"mine={library['mine'].digest[:8]}"):
        result = run("generate", "--adapter", adapter, *words)
        assert result.exit_code == 0, result.output
        (answer,) = json.loads(result.stdout)["turns"][0]["answers"]
        turns.append((answer["adapter"], answer["text"]))
    assert turns == [turns[0]] * 3
    assert json.loads(run("inspect", "mine", "--json").stdout)["parameters"] == llama.adapter.num_parameters
    for command in (
        ("merge", llama.base, "mine", "--output", tmp_path / "merged"),
        ("combine", "mine", "twice=mine", "--output", tmp_path / "both"),
        ("eval", "--base", llama.base, "--adapter", "mine", "--data", pairs, "--generate-rows", 0),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
    assert weft.load(tmp_path / "both").provenance["lineage"]["inputs"][0]["name"] == "mine"


def test_paths_come_before_names(
    llama: Made, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adapter_path(Path("mine")) == library.folder("mine")
    (tmp_path / "mine" / "adapter").mkdir(parents=True)
    assert adapter_path(Path("mine")) == Path("mine/adapter")
    library.edit("mine", rename="v1.5")
    assert named_paths(["v1.5"]) == {"v1-5": library.folder("v1.5")}
    with pytest.raises(ConfigError, match="two are called"):
        named_paths(["v1.5", "v1.5"])


def test_what_is_neither_has_the_nearest_of_both(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mines").mkdir()
    with pytest.raises(FormatError) as raised:
        adapter_path(Path("minee"))
    message = str(raised.value)
    assert message.startswith("there is no adapter at minee: no such file or folder; did you mean 'mines'? And ")
    assert message.endswith("did you mean 'mine'?")
    library.remove("mine")
    with pytest.raises(FormatError, match="`weft library restore mine` brings it back"):
        adapter_path(Path("mine"))
    with pytest.raises(FormatError) as raised:
        adapter_path(Path("./else/mine"))
    assert str(raised.value) == "there is no adapter at else/mine: no such file or folder"


def test_looking_needs_no_torch(library: Library) -> None:
    for words in (("list",), ("search", "chat", "--tag", "good"), ("show", "mine")):
        code = "from weft.cli import main\ntry: main()\nfinally: import sys; print(*sys.modules)"
        result = python("-c", code, "library", *words)
        assert result.returncode == 0, result.stderr
        assert not {"torch", "transformers", "numpy"} & set(result.stdout.splitlines()[-1].split()), words
