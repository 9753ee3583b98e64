"""The shape of the code: imports run downward only, and third parties stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import weft

ROOT = Path(weft.__file__).parent

# Upper layers may import lower ones, and their own. Names are packages or modules under weft.
LAYERS = [
    {"cli"},
    {"demo"},
    {"tasks", "serving", "library", "compare"},
    {"training", "memory"},
    {"model"},
    {"analysis", "algebra", "formats", "data"},
    {"variants", "companions"},
    {"nn", "init"},
    {"ops", "adapter", "config", "digest", "fingerprint", "patterns"},
    {"linalg", "registry", "errors", "bundled"},
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Third parties that only some rooms may import; everything else below may use torch, safetensors and numpy.
ROOMS = {
    "triton": {"ops.triton"},
    "bitsandbytes": {"nn.quantized"},
    "torchao": {"nn.quantized"},
    "matplotlib": {"analysis.plots", "analysis.report"},
    "jinja2": {"analysis.report", "data", "cli"},
    "transformers": {"tasks", "training", "memory", "serving", "cli", "data", "compare"},
    "accelerate": {"training"},
    "datasets": {"data"},
    "soundfile": {"data.audio", "tasks.tiny.speech"},
    "scipy": {"data.audio", "compare"},
    "sklearn": {"tasks.classification.metrics"},
    "jiwer": {"tasks.recognition.metrics"},
    "nevergrad": {"training.weight_search"},
    "diffusers": {"tasks"},
    "PIL": {"data", "tasks", "training"},
    "pydantic": {"training", "tasks.settings", "cli", "serving", "library"},
    "typer": {"cli"},
    "rich": {"cli", "compare", "training", "tasks", "demo"},
    "yaml": {"training", "cli"},
    "peft": set(),
}
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py"))


def imports(module: str) -> list[str]:
    """The dotted names that a module's source imports, wherever in the file."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str) -> None:
    room = module.split(".")[0]
    if room in ("__init__", "__main__"):
        return  # the package's face: it shows what the layers below make
    assert room in DEPTH, f"weft.{room} has no place in the layers; give it one"
    for name in imports(module):
        if name.startswith("weft."):
            other = name.split(".")[1]
            if other in DEPTH:
                assert DEPTH[other] >= DEPTH[room], f"weft.{module} imports weft.{other}, which stands above it"


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_stay_in_their_rooms(module: str) -> None:
    for name in imports(module):
        rooms = ROOMS.get(name.split(".")[0])
        if rooms is not None:
            inside = any(module == room or module.startswith(f"{room}.") for room in rooms)
            assert inside, f"weft.{module} imports {name}; it belongs in {sorted(rooms) or 'the tests alone'}"


def test_importing_weft_costs_little_more_than_torch() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import weft
[getattr(weft, name) for name in weft.__all__]
print(*sorted({module.split(".")[0] for module in set(sys.modules) - before}))
"""
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    third_parties = set(new) - set(sys.stdlib_module_names)
    assert third_parties <= {"weft", "safetensors", "torch", "numpy"}


def test_public_names_are_all_there_and_documented() -> None:
    for name in weft.__all__:
        assert getattr(weft, name).__doc__, f"weft.{name} has no docstring"


@pytest.mark.parametrize("forbidden", ["utils", "other", "common", "helpers", "misc"])
def test_no_file_is_a_drawer(forbidden: str) -> None:
    assert not [m for m in MODULES if m.split(".")[-1] == forbidden]
