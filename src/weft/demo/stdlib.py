"""The functions of Python's own standard library, as data: real, and on every machine.

Rows are split by top-level module, so that a row is evaluated only if no function of its module
(or of the same package) was ever trained on. The bundled base model was pretrained without the
evaluation modules and without any docstring, so both of the demo's tasks are new to it.
"""

import ast
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Not library code that a person would read: tests, demos and two bundled applications.
_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "idle_test", "turtledemo", "lib2to3", "site-packages", "__pycache__"}
)

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One documented function: where it stands, its source without the docstring, and the docstring's first line."""

    module: str
    name: str
    source: str
    summary: str

    @property
    def is_held_out(self) -> bool:
        """Whether the function is for evaluation only."""
        return is_held_out(self.module)


def is_held_out(module: str) -> bool:
    """Whether a module is for evaluation only: one in eight, chosen by a hash of its top-level name."""
    return zlib.crc32(module.partition(".")[0].encode()) % 8 == 3


def source_files() -> Iterator[tuple[str, Path]]:
    """Every (dotted module name, file) of the standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.isdisjoint(parts) and parts[0] in sys.stdlib_module_names:
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def without_docstrings(source: str) -> str:
    """The source text with the lines of every docstring taken out; all else, comments too, as it was.

    Raises:
        SyntaxError: the text is not Python.
    """
    tree, lines = _parse(source), source.splitlines()
    return "\n".join(_undocumented(lines, tree, 1, len(lines)))


def functions() -> list[Function]:
    """Every function of the standard library whose docstring opens with a sentence of 3 to 16 words."""
    rows: dict[tuple[str, str], Function] = {}
    for module, path in source_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = _parse(text)
        except SyntaxError:  # a few files are templates
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, _Function) or node.name.startswith("__") or len(node.body) < 2:
                continue
            summary = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            if 3 <= len(summary.split()) <= 16:
                body = _undocumented(lines, node, node.lineno, node.end_lineno or node.lineno)
                source = "\n".join(_dedented(line, node.col_offset) for line in body)
                rows.setdefault((source, summary), Function(module, node.name, source, summary))
    return list(rows.values())


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in string literals are not ours to mend
        return ast.parse(text)


def _undocumented(lines: list[str], tree: ast.AST, start: int, end: int) -> list[str]:
    """Lines `start` to `end`, which are those of `tree`, without the lines of docstrings."""
    drop: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | _Function) and len(node.body) > 1:
            first, second = node.body[:2]
            shares_a_line = first.lineno <= getattr(node, "lineno", 0) or second.lineno <= (first.end_lineno or 0)
            if _is_string(first) and not shares_a_line:  # lines are taken whole
                drop.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return [lines[i - 1] for i in range(start, end + 1) if i not in drop]


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dedented(line: str, columns: int) -> str:
    return line[columns:] if line[:columns].isspace() else line
