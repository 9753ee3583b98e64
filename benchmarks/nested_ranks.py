"""The rank after the training: one run's curve against runs at each rank of their own.

    python -m benchmarks.nested_ranks [quick] [--rows FILE.jsonl]

Held-out loss (nats per learned token) at each rank, of (a) adapters trained at that rank alone, (b) the truncated SVD
of a plain run at the highest rank, and (c) the prefixes of a nested run at the highest rank. All take the same rows,
steps, learning rate, alpha and seed; each round is another seed. At the highest rank (a) and (b) are the same run. Rows
are those of a task of `weft demo`, made of Python's standard library: name a function after what it does.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import weft
from benchmarks.harness import Case, Options, device, in_fresh_process, main
from benchmarks.records import Figures, Setting
from weft.demo.stdlib import functions
from weft.demo.tasks import NAME
from weft.training import RunConfig, load_base, load_text, rank_curve, run

RANKS = (1, 2, 4, 8, 16)
LEARNING_RATE, BATCH = 2e-3, 8
ALONE, TRUNCATED, NESTED = "trained at that rank", "truncated SVD", "nested"


def losses(files: tuple[Path, Path], rank: int, nested: bool, steps: int, seed: int) -> dict[int, float]:
    """Trains one adapter; rank -> held-out loss for rank 0, and `RANKS` up to its own."""
    train, held_out = files
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            RunConfig(
                output=Path(folder) / "run",
                train=str(train),
                rank=rank,
                nested=nested,
                learning_rate=LEARNING_RATE,
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


def measure(rows: Path | None, size: int, steps: int, ranks: tuple[int, ...], rounds: int) -> Figures:
    """Every run of every round, each in a fresh process."""
    figures: Figures = {name: {} for name in ("base", ALONE, TRUNCATED, NESTED)}

    def note(variant: str, rank: int, loss: float) -> None:
        figures[variant].setdefault(f"loss_at_rank_{rank}", []).append(loss)

    with tempfile.TemporaryDirectory() as folder:
        files = _files(rows, Path(folder), size)
        for seed in range(rounds):
            plain = in_fresh_process(losses, files, ranks[-1], False, steps, seed)
            nested = in_fresh_process(losses, files, ranks[-1], True, steps, seed)
            note("base", 0, plain[0])
            for rank in ranks:
                alone = plain if rank == ranks[-1] else in_fresh_process(losses, files, rank, False, steps, seed)
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
    """One case: the bundled base."""
    full = options.effort == "full"
    size, steps, rounds = (4000, 400, 2) if full else (24, 3, 1)
    ranks = RANKS if full else (1, 4)
    data = "functions' names" if options.rows is None else options.rows.stem
    setting: Setting = {"base": "bundled", "data": data, "steps": steps, "batch": BATCH, "device": device()}
    yield Case("nested_ranks", setting, lambda: measure(options.rows, size, steps, ranks, rounds))


if __name__ == "__main__":
    main(cases)
