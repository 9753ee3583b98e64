"""The page of worked examples says what the library does."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "linear-algebra.md"


def test_every_example_on_the_page_holds() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest("".join(blocks), {}, PAGE.name, str(PAGE), 0)
    report: list[str] = []
    result = doctest.DocTestRunner().run(examples, out=report.append)
    assert result.attempted > 30, "the page lost its examples"
    assert result.failed == 0, "".join(report)
