"""Times several ways of doing one thing, interleaved, and keeps the results as data.

Variants take turns within each round, so that a machine whose speed drifts slows them all alike; what is
reported is the median over rounds and the median of the per-round ratios to the first variant.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One variant's figures.

    Attributes:
        name: the variant.
        seconds: the median time of a call.
        ratio: the median over rounds of its time over the first variant's in that round.
        rounds: how many rounds there were.
    """

    name: str
    seconds: float
    ratio: float
    rounds: int


def compare(variants: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 2) -> list[Measurement]:
    """Calls every variant once a round; the first is what the ratios are to."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    return [
        Measurement(
            name, statistics.median(own), statistics.median(a / b for a, b in zip(own, first, strict=True)), rounds
        )
        for name, own in times.items()
    ]


def record(benchmark: str, measurements: list[Measurement], **setting: object) -> None:
    """Prints the measurements, and appends them to ``results/<benchmark>.jsonl`` with the machine and versions."""
    for m in measurements:
        print(f"{benchmark:24} {m.name:28} {1e3 * m.seconds:10.3f} ms   {m.ratio:6.3f}")
    RESULTS.mkdir(exist_ok=True)
    row = {
        "benchmark": benchmark,
        "setting": setting,
        "measurements": [asdict(m) for m in measurements],
        "machine": machine(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (RESULTS / f"{benchmark}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on: processor, threads, accelerator, versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "weft", "peft", "transformers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
