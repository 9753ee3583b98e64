"""Adapters made for the tests of a library."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import weft
from weft import Adapter, Layout, LoRAConfig, LowRank
from weft.fingerprint import Fingerprint, fingerprint
from weft.library import Problem

SHAPES = {"layers.0.q": (12, 8), "layers.0.v": (8, 8), "layers.1.q": (12, 8)}


def base(seed: int, dtype: torch.dtype = torch.float32) -> Fingerprint:
    """The fingerprint of a base; of the same seed in another dtype, the same base."""
    source = torch.Generator().manual_seed(seed)
    return fingerprint(
        {f"{path}.weight": torch.randn(shape, generator=source).to(dtype) for path, shape in SHAPES.items()}
    )


def adapter(
    seed: int, of: Fingerprint | None = None, rank: int = 2, near: Adapter | None = None, **provenance: Any
) -> Adapter:
    """Random factors, or those of another adapter with noise of a third of their size."""
    source = torch.Generator().manual_seed(seed)

    def draw(path: str, name: str, *shape: int) -> torch.Tensor:
        noise = torch.randn(*shape, generator=source)
        return noise if near is None else getattr(near.factors[path], name) + noise / 3

    factors = {
        path: LowRank(draw(path, "B", out, rank), draw(path, "A", rank, width), 0.5 if "q" in path else 2.0)
        for path, (out, width) in SHAPES.items()
    }
    config = LoRAConfig(rank=rank, alpha=rank / 2, targets=("q", "v"))
    return Adapter(config, factors, {path: Layout() for path in factors}, base=of, provenance=provenance)


def run_folder(folder: Path, made: Adapter, lines: str, data: Path | None = None) -> Path:
    """A run's folder, as training leaves one."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("base: bundled\n")
    (folder / "metrics.jsonl").write_text(lines)
    provenance = {**made.provenance, "data": str(data)}
    Adapter(made.config, made.factors, made.layouts, base=made.base, provenance=provenance).save(folder / "adapter")
    return folder


def sorts(problems: list[Problem]) -> list[str]:
    return [problem.sort for problem in problems]


def same(a: Adapter, b: Adapter) -> bool:
    """Whether two adapters change every weight alike, bit for bit."""
    return a.factors.keys() == b.factors.keys() and all(
        torch.equal(x.B, b.factors[path].B)
        and torch.equal(x.A, b.factors[path].A)
        and x.scaling == b.factors[path].scaling
        for path, x in a.factors.items()
    )


def files(folder: Path) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


Make = Callable[[], weft.Adapter]
