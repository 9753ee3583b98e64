"""How an adapter that was made from others says so, in its provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weft.adapter import Adapter
from weft.digest import digest


def input_of(adapter: Adapter, *, weight: float | None = None, name: str | None = None) -> dict[str, Any]:
    """One ancestor, in plain values: its digest, its name and weight if it has them, and its own lineage."""
    facts = {"name": name, "weight": weight, "lineage": adapter.provenance.get("lineage")}
    return {"digest": digest(adapter)} | {key: value for key, value in facts.items() if value is not None}


def with_lineage(
    adapter: Adapter, operation: str, inputs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> Adapter:
    """The adapter with ``provenance["lineage"]``: the operation, what went in, and its settings that are not None."""
    own = {key: value for key, value in settings.items() if value is not None}
    line = {"operation": operation, "inputs": [dict(each) for each in inputs], **own}
    return replace(adapter, provenance={**adapter.provenance, "lineage": line})
