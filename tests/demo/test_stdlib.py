"""The demo's data: real, split by module, and without the answers in the questions."""

import json
from pathlib import Path

import pytest

from weft.demo.stdlib import Function, functions, is_held_out, without_docstrings
from weft.demo.tasks import TASKS, Task


@pytest.fixture(scope="module")
def rows() -> list[Function]:
    return functions()


def test_there_is_enough_to_train_and_evaluate_on(rows: list[Function]) -> None:
    held_out = [row for row in rows if row.is_held_out]
    assert len(held_out) >= 300
    assert len(rows) - len(held_out) >= 2000


def test_no_top_level_module_is_on_both_sides(rows: list[Function]) -> None:
    sides = {is_held_out(row.module): set() for row in rows}
    for row in rows:
        sides[row.is_held_out].add(row.module.partition(".")[0])
    assert not sides[True] & sides[False]


def test_the_summary_is_not_in_the_source(rows: list[Function]) -> None:
    # A comment may repeat a docstring by chance; the docstring itself is gone.
    leaking = [row for row in rows if row.summary in " ".join(row.source.split())]
    assert len(leaking) < 0.01 * len(rows)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f():\n    """Says it."""\n    return 1  # stays', "def f():\n    return 1  # stays"),
        ('"""Module."""\n\nx = """not a docstring"""', '\nx = """not a docstring"""'),
        ('class C:\n    """One\n    two."""\n\n    y = 1', "class C:\n\n    y = 1"),
        ('def f(): "same line"; return 1', 'def f(): "same line"; return 1'),
        ('def f():\n    """All there is."""', 'def f():\n    """All there is."""'),
    ],
)
def test_docstrings_and_nothing_else_are_taken_out(source: str, expected: str) -> None:
    assert without_docstrings(source) == expected


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_files_hold_pairs_and_no_row_twice(task: Task, rows: list[Function], tmp_path: Path) -> None:
    train, held_out = task.write(rows, tmp_path, most=50)
    own = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, held_out)]
    assert [len(part) for part in own] == [50, 50]
    for part in own:
        assert all(row["prompt"] and row["completion"].startswith(" ") for row in part)
        assert len({json.dumps(row) for row in part}) == len(part)
    assert task.write(rows, tmp_path, most=50)[0].read_text() == train.read_text()
