"""The digest of an adapter's value: one name for the same change, wherever it is stored and whoever saved it."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from weft.adapter import Adapter


def digest(adapter: Adapter) -> str:
    """sha256 over everything that decides what the adapter computes, as 64 hexadecimal digits.

    That is each module's path, layout, scaling, factors and magnitudes, the tensors trained whole, the companions with
    their settings, and the variant.
    Where it came from, and what it was asked to be, is not part of it; nor is a file format.
    """
    state = hashlib.sha256()
    config = adapter.config.to_dict()
    _add(state, "variant", config["variant"])
    for path, factors in sorted(adapter.factors.items()):
        layout = adapter.layouts[path]
        _add(state, path, [layout.kind, layout.kernel, layout.groups, factors.scaling.hex()], factors.B, factors.A)
    parts = {"tensor": adapter.tensors, "magnitude": adapter.magnitudes, "companion": adapter.companions}
    for sort, tensors in parts.items():
        for path, tensor in sorted(tensors.items()):
            _add(state, path, sort, tensor)
    for settings in config["companions"] if adapter.companions else ():
        _add(state, "companions", settings)
    return state.hexdigest()


def _add(state: "hashlib._Hash", name: str, facts: Any, *tensors: Tensor) -> None:
    """A line that says what follows, so that no two adapters give the same bytes, then the tensors' own bytes."""
    line = [name, facts, [[str(tensor.dtype), list(tensor.shape)] for tensor in tensors]]
    state.update(json.dumps(line, sort_keys=True).encode() + b"\n")
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
