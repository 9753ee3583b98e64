"""Rows to train on, to choose learning rates by, and to report on, from public data sets as their authors publish them.

    python -m benchmarks.tasks.rows --source FOLDER --output data

FOLDER holds, as far as you have them:

    dialogsum/{train,dev,test}.jsonl             github.com/cylnlp/DialogSum
    e2e/devset.csv, e2e/testset_w_refs.csv       github.com/tuetschek/e2e-dataset (its dev set serves for training)
    sst2/{train,dev,test}.tsv                    label, text: SST-2, whole sentences
    cola/{train,dev_in_domain,dev_out_of_domain}.tsv   github.com/nyu-mll/CoLA-baselines
    banking77/{train,test}.tsv                   label, text: github.com/PolyAI-LDN/task-specific-datasets

Rows are drawn with a fixed seed; no row that is reported on is trained on, nor was a rate chosen by it.
"""

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def dialogsum(source: Path) -> dict[str, Rows]:
    """Dialogues with their summary; the test rows have three."""

    def rows(name: str) -> Rows:
        return [json.loads(line) for line in (source / f"dialogsum/{name}.jsonl").open(encoding="utf-8")]

    test = [{"dialogue": row["dialogue"], "summary": row["summaries"]} for row in rows("test")]
    train, dev = (
        [{key: row[key] for key in ("dialogue", "summary")} for row in rows(name)] for name in ("train", "dev")
    )
    return {"train": _drawn(train, 1600), "eval": _drawn(dev, 100), "test": _drawn(test, 100)}


def e2e(source: Path) -> dict[str, Rows]:
    """Meaning representations and texts for them; those that are evaluated have all of their texts."""
    texts = {
        name: _grouped(csv.DictReader((source / f"e2e/{name}.csv").open(encoding="utf-8-sig", newline="")))
        for name in ("devset", "testset_w_refs")
    }
    meanings = list(texts["devset"].items())
    held = set(random.Random(0).sample(range(len(meanings)), 60))
    train = [{"mr": mr, "ref": ref} for i, (mr, refs) in enumerate(meanings) if i not in held for ref in refs]
    evaluated = [{"mr": mr, "ref": refs} for i, (mr, refs) in enumerate(meanings) if i in held]
    test = [{"mr": mr, "ref": refs} for mr, refs in texts["testset_w_refs"].items()]
    return {"train": _drawn(train, 3200), "eval": evaluated, "test": _drawn(test, 100)}


def sst2(source: Path) -> dict[str, Rows]:
    """Sentences of film reviews: do they praise?"""
    names = {"train": "train", "eval": "dev", "test": "test"}
    rows = {part: _tsv(source / f"sst2/{name}.tsv") for part, name in names.items()}
    return {"train": _drawn(rows["train"], 3200), "eval": _drawn(rows["eval"], 400), "test": rows["test"]}


def cola(source: Path) -> dict[str, Rows]:
    """Sentences of linguistics papers: are they grammatical?"""
    train = _tsv(source / "cola/train.tsv")
    random.Random(0).shuffle(train)
    return {
        "train": train[:4800],
        "eval": train[4800:5300],
        "test": [*_tsv(source / "cola/dev_in_domain.tsv"), *_tsv(source / "cola/dev_out_of_domain.tsv")],
    }


def banking77(source: Path) -> dict[str, Rows]:
    """Questions to a bank: which of 77 intents?"""
    train = _tsv(source / "banking77/train.tsv")
    random.Random(0).shuffle(train)
    return {"train": train[:4800], "eval": train[4800:5300], "test": _drawn(_tsv(source / "banking77/test.tsv"), 1000)}


SETS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    each.__name__: each for each in (dialogsum, e2e, sst2, cola, banking77)
}


def main() -> None:
    """Writes the rows of every data set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("data"))
    given = parser.parse_args()
    for name, read in SETS.items():
        if not (given.source / name).is_dir():
            print(f"{name}: there is no folder {given.source / name}; left out")
            continue
        for part, rows in read(given.source).items():
            path = given.output / name / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows):,} rows")


def _tsv(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"text": row["text"], "label": row["label"]} for row in reader]


def _grouped(rows: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["mr"], []).append(row["ref"])
    return texts


def _drawn(rows: Rows, most: int) -> Rows:
    """So many rows, drawn with a fixed seed."""
    return random.Random(0).sample(rows, min(most, len(rows)))


if __name__ == "__main__":
    main()
