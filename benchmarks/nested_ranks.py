"""The rank after the training: one run's curve against runs at each rank of their own.

    python -m benchmarks.nested_ranks [quick] [--rows FILE.jsonl]

Held-out loss (nats per learned token) at each rank, of (a) adapters trained at that rank alone, (b) the truncated SVD
of a plain run at the highest rank, and (c) the prefixes of a nested run at the highest rank. All take the same rows,
steps, learning rate, alpha and seed; each round is another seed. At the highest rank (a) and (b) are the same run. Rows
are those of a task of `weft demo`, made of Python's standard library: name a function after what it does.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import weft
from benchmarks.harness import Case, Options, device, in_fresh_process, main
from benchmarks.records import Figures, Setting
from weft.demo.stdlib import functions
from weft.demo.tasks import NAME
from weft.tasks import TextRun
from weft.training import load_base, load_text, rank_curve, run

RANKS = (1, 2, 4, 8, 16)
LEARNING_RATES, BATCH = (2e-3, 5e-3), 8
ALONE, TRUNCATED, NESTED = "trained at that rank", "truncated SVD", "nested"


def losses(
    files: tuple[Path, Path], rank: int, nested: bool, learning_rate: float, steps: int, seed: int
) -> dict[int, float]:
    """Trains one adapter; rank -> held-out loss for rank 0, and `RANKS` up to its own."""
    train, held_out = files
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            TextRun(
                output=Path(folder) / "run",
                train=str(train),
                rank=rank,
                nested=nested,
                learning_rate=learning_rate,
                batch_size=BATCH,
                max_steps=steps,
                save_every=steps,
                seed=seed,
                bf16=False,
                tensorboard=False,
            )
        )
        adapter = weft.load(result.adapter)
    base = load_base("bundled")
    data = load_text(held_out, base.tokenizer, max_length=512)
    model = base.model.to(device())  # type: ignore[arg-type]  # transformers' signature is a wrapper's
    ranks = [each for each in RANKS if each <= rank]
    curve = rank_curve(model, base.tokenizer, data, adapter, ranks=ranks, batch_size=2 * BATCH, resamples=1)
    return {point.rank: point.loss for point in curve.points}


@dataclass(frozen=True)
class Runs:
    """What the runs of a case have in common.

    Attributes:
        rows: the JSONL file of rows; None for the functions' names.
        size: rows to train on at most.
        learning_rate: the peak.
        steps: of each run.
        ranks: ascending.
        rounds: seeds.
    """

    rows: Path | None
    size: int
    learning_rate: float
    steps: int
    ranks: tuple[int, ...]
    rounds: int


def measure(runs: Runs) -> Figures:
    """Every run of every round, each in a fresh process."""
    figures: Figures = {name: {} for name in ("base", ALONE, TRUNCATED, NESTED)}

    def note(variant: str, rank: int, loss: float) -> None:
        figures[variant].setdefault(f"loss_at_rank_{rank}", []).append(loss)

    with tempfile.TemporaryDirectory() as folder:
        files = _files(runs.rows, Path(folder), runs.size)
        for seed in range(runs.rounds):

            def found(rank: int, nested: bool, seed: int = seed) -> dict[int, float]:
                return in_fresh_process(losses, files, rank, nested, runs.learning_rate, runs.steps, seed)

            *lower, highest = runs.ranks
            plain, nested = found(highest, False), found(highest, True)
            alone = {rank: found(rank, False)[rank] for rank in lower} | {highest: plain[highest]}
            note("base", 0, plain[0])
            for rank in runs.ranks:
                note(ALONE, rank, alone[rank])
                note(TRUNCATED, rank, plain[rank])
                note(NESTED, rank, nested[rank])
    return figures


def _files(rows: Path | None, folder: Path, size: int) -> tuple[Path, Path]:
    """Files to train on and to evaluate on; of given rows every tenth is held out."""
    if rows is None:
        return NAME.write(functions(), folder, size)
    lines = rows.read_text(encoding="utf-8").splitlines()
    held_out = lines[::10][:200]
    train = [line for place, line in enumerate(lines) if place % 10][:size]
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, kept in zip(paths, (train, held_out), strict=True):
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return paths


def cases(options: Options) -> Iterator[Case]:
    """The bundled base, at a learning rate that is right for it and at one that is high."""
    full = options.effort == "full"
    data = "functions' names" if options.rows is None else options.rows.stem
    for learning_rate in LEARNING_RATES if full else LEARNING_RATES[:1]:
        if full:
            runs = Runs(options.rows, 4000, learning_rate, 400, RANKS, 2)
        else:
            runs = Runs(options.rows, 24, learning_rate, 4, (1, 4), 1)
        setting: Setting = {
            "base": "bundled",
            "data": data,
            "steps": runs.steps,
            "batch": BATCH,
            "learning_rate": learning_rate,
            "device": device(),
        }
        yield Case("nested_ranks", setting, partial(measure, runs))


if __name__ == "__main__":
    main(cases)
