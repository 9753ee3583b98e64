"""What a library notes of an adapter as it comes in: from its values and provenance, and from a run's folder."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weft.adapter import Adapter
from weft.algebra.finite import not_finite
from weft.errors import ConfigError
from weft.formats import load
from weft.library.manifest import Manifest, as_name
from weft.library.sketch import norm


@dataclass(frozen=True)
class Source:
    """An adapter with what stands around it on the disk.

    Attributes:
        adapter: the adapter.
        name: what it might be called.
        created: when its file was written, in UTC.
        metrics: the last evaluation of a run.
        data_sha256: of a run's data.
    """

    adapter: Adapter
    name: str | None = None
    created: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    data_sha256: str | None = None

    def noted(self) -> dict[str, Any]:
        """What is known beside the adapter, as fields of its manifest."""
        fields = {"created": self.created, "metrics": self.metrics, "data_sha256": self.data_sha256}
        return {name: value for name, value in fields.items() if value}


def read_source(path: Path) -> Source:
    """The adapter at a path, or that of the run whose folder it is.

    Raises:
        FormatError, ConfigError: there is none, or a file is not what it says.
    """
    run = (path / "config.yaml").is_file() and (path / "adapter").is_dir()
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    adapter = load(folder)
    parts = (as_name(part) for part in reversed(path.absolute().parts) if part != "adapter")
    name = next((part for part in parts if part), None)
    newest = max((p for p in ([folder] if folder.is_file() else folder.iterdir())), key=lambda p: p.stat().st_mtime)
    created = in_utc(newest.stat().st_mtime)
    if not run:
        return Source(adapter, name, created)
    from weft.training.folder import FINAL, RunFolder

    kept = RunFolder(path)
    last: Mapping[str, Any] = next((line for line in reversed(kept.lines()) if FINAL in line), {})
    metrics = {key.removeprefix("eval_"): value for key, value in last.items() if key.startswith("eval_")}
    return Source(adapter, name, created, finite(metrics), _data_sum(adapter.provenance.get("data"), kept.config))


def manifest_of(adapter: Adapter, digest: str, name: str) -> Manifest:
    """What the adapter says of itself."""
    ranks = [factors.rank for factors in adapter.factors.values()]
    said = adapter.provenance
    return Manifest(
        digest=digest,
        name=name,
        base=_text(said.get("base")),
        fingerprint=None if adapter.base is None else adapter.base.structure,
        variant=adapter.config.variant.name,
        modules=len(adapter.factors),
        targets=tuple(sorted({path.rpartition(".")[2] for path in adapter.factors})),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        parameters=adapter.num_parameters,
        nbytes=adapter.nbytes,
        norm=norm(adapter),
        task=_text(said.get("task") or said.get("task_type")),
        data=_text(said.get("data")),
        licence=_text(said.get("licence") or said.get("license")),
        created=_text(said.get("created")),
        added=in_utc(datetime.now(UTC).timestamp()),
        provenance=dict(said),
    )


def require_finite(adapter: Adapter) -> None:
    """Raises ConfigError if the adapter holds NaN or infinity."""
    wrong = sorted(not_finite(adapter))
    if wrong:
        raise ConfigError(
            f"the adapter holds NaN or infinity in {len(wrong)} of its parts, first in {wrong[0]!r}; a run that went "
            "wrong leaves such: train it again with a lower learning rate"
        )


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are finite numbers."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def in_utc(seconds: float) -> str:
    """A time as text that sorts by time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _data_sum(data: Any, config: Path) -> str | None:
    """The sha256 of a run's data, if it is a file that has not been written to since the run began."""
    path = Path(str(data))
    try:
        if not path.is_file() or path.stat().st_mtime > config.stat().st_mtime:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
