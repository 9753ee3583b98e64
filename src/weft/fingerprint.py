"""Which base an adapter was made for: names, shapes, and a few sampled weights.

The same base in another floating dtype still matches (the samples differ by rounding only); so does a
quantised one, whose packed tensors are left out. Another base, or a fine-tuned copy of the same, does
not. A sample costs a few hundred reads, whatever the model's size.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TENSORS, _ENTRIES = 64, 8
# bfloat16 keeps 8 bits: rounding moves a weight by at most 2^-9 of its size, twice where both sides were rounded.
_RELATIVE, _ABSOLUTE = 2**-7, 1e-6


@dataclass(frozen=True)
class Fingerprint:
    """A base model's identity.

    Attributes:
        structure: sha256 over the sorted (name, shape) of every floating-point parameter.
        names: a hash of the sorted parameter names alone.
        samples: parameter name -> up to 8 entries, at places that the name decides; empty where there are no
            weights to read (the meta device).
    """

    structure: str
    names: str
    samples: Mapping[str, tuple[float, ...]]

    def difference(self, other: "Fingerprint") -> str | None:
        """What tells the two bases apart, in words; None if they are the same base."""
        if self.names != other.names:
            return "its parameters have other names"
        if self.structure != other.structure:
            return "its parameters have other shapes"
        common = sorted(self.samples.keys() & other.samples.keys())
        changed = [name for name in common if not _close(self.samples[name], other.samples[name])]
        if changed:
            return f"its weights differ in {len(changed)} of {len(common)} sampled tensors, first in {changed[0]!r}"
        return None

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "structure": self.structure,
            "names": self.names,
            "samples": {k: list(v) for k, v in self.samples.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Fingerprint":
        """The inverse of `to_dict`."""
        samples = values["samples"]
        assert isinstance(samples, Mapping)
        return cls(
            str(values["structure"]),
            str(values["names"]),
            {str(name): tuple(float(x) for x in entries) for name, entries in samples.items()},
        )


def fingerprint(parameters: Mapping[str, Tensor]) -> Fingerprint:
    """The fingerprint of a base's named parameters.

    Args:
        parameters: name -> tensor of any shape, device and dtype.
    """
    names = sorted(parameters)
    floating = {name: parameters[name] for name in names if parameters[name].is_floating_point()}
    readable = [name for name, value in floating.items() if not value.is_meta and value.numel()]
    stride = max(1, math.ceil(len(readable) / _TENSORS))
    return Fingerprint(
        structure=_digest("\n".join(f"{name} {tuple(value.shape)}" for name, value in floating.items())),
        names=_digest("\n".join(names)),
        samples=_samples({name: floating[name] for name in readable[::stride]}),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _samples(values: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    if not values:
        return {}
    # One sort of operation after another: taking turns, tensor by tensor, takes torch three times as long.
    places = torch.tensor([_places(name, value.numel()) for name, value in values.items()])
    entries = [value.detach().flatten()[place] for value, place in zip(values.values(), places, strict=True)]
    rows = torch.stack([entry.to("cpu", torch.float64) for entry in entries]).tolist()
    return {
        name: tuple(float(f"{entry:.6g}") for entry in (row if value.ndim else row[:1]))  # a scalar has one entry
        for (name, value), row in zip(values.items(), rows, strict=True)
    }


def _places(name: str, size: int) -> list[int]:
    seed = zlib.crc32(name.encode())
    return [(seed * (2 * k + 1) + k * 2654435761) % size for k in range(_ENTRIES)]


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for x, y in zip(a, b, strict=True)
    )
