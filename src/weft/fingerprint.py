"""Which base an adapter was made for: names, shapes, and a few sampled weights.

The same base in another floating dtype still matches (the samples differ by rounding only). So does a quantised one,
of which each sample says how far its number can be from the one that was rounded. Another base does not, nor does a
fine-tuned copy of the same, unless all that it changed is quantised on one side and too small for that. A sample costs
a few hundred reads, whatever the model's size.
"""

import hashlib
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

_TENSORS, _ENTRIES = 64, 8
# bfloat16 keeps 8 bits: rounding moves a weight by at most 2^-9 of its size, twice where both sides were rounded.
_RELATIVE, _ABSOLUTE = 2**-7, 1e-6


class Rounded(Protocol):
    """A parameter stored in another form than as its numbers, such as a quantised weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its numbers."""

    def sample(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers at some flat places (n), and how far each can be from what was rounded to it (n); on the CPU."""


@dataclass(frozen=True)
class Fingerprint:
    """A base model's identity.

    Attributes:
        structure: sha256 over the sorted (name, shape) of every floating-point parameter.
        names: a hash of the sorted parameter names alone.
        samples: parameter name -> up to 8 entries, at places that the name decides; empty where there are no
            weights to read (the meta device).
        errors: parameter name -> how far each of these entries can be from the unquantised one; quantised
            parameters alone.
    """

    structure: str
    names: str
    samples: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def difference(self, other: "Fingerprint") -> str | None:
        """What tells the two bases apart, in words; None if they are the same base."""
        if self.names != other.names:
            return "its parameters have other names"
        if self.structure != other.structure:
            return "its parameters have other shapes"
        common = sorted(self.samples.keys() & other.samples.keys())
        changed = [name for name in common if not self._close(other, name)]
        if changed:
            return f"its weights differ in {len(changed)} of {len(common)} sampled tensors, first in {changed[0]!r}"
        return None

    def _close(self, other: "Fingerprint", name: str) -> bool:
        mine, theirs = self.samples[name], other.samples[name]
        if len(mine) != len(theirs):
            return False
        exact = (0.0,) * len(mine)
        errors = (self.errors.get(name, exact), other.errors.get(name, exact))
        return all(
            # Both roundings can push apart: that of the dtype, and that of a quantised form.
            math.isclose(x, y, rel_tol=0, abs_tol=max(_RELATIVE * max(abs(x), abs(y)), _ABSOLUTE) + a + b)
            for x, y, a, b in zip(mine, theirs, *errors, strict=True)
        )

    def without(self, modules: Collection[str]) -> "Fingerprint":
        """The same base, whatever values it has in the modules at these paths."""
        inside = tuple(f"{path}." for path in modules)
        kept = {name: entries for name, entries in self.samples.items() if not name.startswith(inside)}
        return replace(self, samples=kept)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        values: dict[str, object] = {
            "structure": self.structure,
            "names": self.names,
            "samples": {k: list(v) for k, v in self.samples.items()},
        }
        return values | ({"errors": {k: list(v) for k, v in self.errors.items()}} if self.errors else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Fingerprint":
        """The inverse of `to_dict`."""
        samples, errors = values["samples"], values.get("errors", {})
        assert isinstance(samples, Mapping)
        assert isinstance(errors, Mapping)
        return cls(str(values["structure"]), str(values["names"]), _floats(samples), _floats(errors))


def fingerprint(parameters: Mapping[str, Tensor | Rounded]) -> Fingerprint:
    """The fingerprint of a base's named parameters.

    Args:
        parameters: name -> tensor of any shape, device and dtype, or what stands for a quantised one.
    """
    names = sorted(parameters)
    shapes: dict[str, tuple[int, ...]] = {}
    readable: list[str] = []
    for name in names:
        value = parameters[name]
        if not isinstance(value, Tensor) or value.is_floating_point():
            shapes[name] = tuple(value.shape)
            if not isinstance(value, Tensor) or (not value.is_meta and value.numel()):
                readable.append(name)
    sampled = {name: parameters[name] for name in readable[:: max(1, math.ceil(len(readable) / _TENSORS))]}
    samples = _samples({name: value for name, value in sampled.items() if isinstance(value, Tensor)})
    errors = {}
    for name, value in sampled.items():
        if not isinstance(value, Tensor):
            entries, reach = value.sample(torch.tensor(_places(name, math.prod(value.shape))))
            samples[name], errors[name] = _numbers(entries.tolist()), _numbers(reach.tolist())
    return Fingerprint(
        structure=_digest("\n".join(f"{name} {shape}" for name, shape in shapes.items())),
        names=_digest("\n".join(names)),
        samples=samples,
        errors=errors,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _floats(values: Mapping[object, object]) -> dict[str, tuple[float, ...]]:
    return {str(name): tuple(float(x) for x in entries) for name, entries in values.items()}  # type: ignore[attr-defined]


def _samples(values: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    if not values:
        return {}
    # One sort of operation after another: taking turns, tensor by tensor, takes torch three times as long.
    places = torch.tensor([_places(name, value.numel()) for name, value in values.items()])
    entries = [value.detach().flatten()[place] for value, place in zip(values.values(), places, strict=True)]
    rows = torch.stack([entry.to("cpu", torch.float64) for entry in entries]).tolist()
    return {
        name: _numbers(row if value.ndim else row[:1])  # a scalar has one entry
        for (name, value), row in zip(values.items(), rows, strict=True)
    }


def _numbers(entries: list[float]) -> tuple[float, ...]:
    """With six digits, which is more than a weight has where it is rounded to bfloat16."""
    return tuple(float(f"{entry:.6g}") for entry in entries)


def _places(name: str, size: int) -> list[int]:
    seed = zlib.crc32(name.encode())
    return [(seed * (2 * k + 1) + k * 2654435761) % size for k in range(_ENTRIES)]
