"""The documents that the bundled base model reads: plain English, and the standard library's source.

The source has its docstrings taken out, and the modules on which the demo is evaluated are left out
whole, so that what the demo teaches is new to the model.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from weft.demo.stdlib import is_held_out, source_files, without_docstrings

SEPARATOR = "<|doc|>"
CHUNK = 12_000  # characters: a novel is cut into pieces of this size, so that shuffling mixes it with the rest

# Folder of the text collection -> megabytes taken from it at most. Dialogues and novels are capped, being
# narrow and plentiful. wikitext2 is not here: it is the evaluation.
SHARES = {
    "novels100": 8.0,
    "wikipedia_boolq": 9.0,
    "wikipedia_dbpedia": 9.0,
    "wikipedia_demo": 9.0,
    "movie_reviews": 3.5,
    "onestop_english": 9.0,
    "sgd_dialogues": 2.5,
    "pd_books": 1.0,
    "cia_factbook": 9.0,
    "state_union": 1.0,
    "inaugural": 9.0,
    "tinyshakespeare": 0.4,
}


def _documents(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.txt")):
        for document in path.read_text(encoding="utf-8").split(f"\n{SEPARATOR}\n"):
            for start in range(0, len(document), CHUNK):
                yield document[start : start + CHUNK].strip()


def _code() -> Iterator[str]:
    for module, path in source_files():
        if not is_held_out(module):
            try:
                source = without_docstrings(path.read_text(encoding="utf-8", errors="replace"))
            except SyntaxError:
                continue
            for start in range(0, len(source), CHUNK):
                yield source[start : start + CHUNK].strip()


def documents(text: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    """The shuffled documents under `text`, as (training, held-out): one in a hundred is held out."""
    rng = random.Random(seed)
    chosen: list[str] = []
    for folder, megabytes in SHARES.items():
        found = [document for document in _documents(text / folder) if document]
        rng.shuffle(found)
        budget = megabytes * 1e6
        for document in found:
            budget -= len(document)
            if budget < 0:
                break
            chosen.append(document)
    chosen += _code()
    rng.shuffle(chosen)
    held_out = len(chosen) // 100
    return chosen[held_out:], chosen[:held_out]
