"""DoRA: the direction of W + s B A, with a trained magnitude for each output (Liu et al., 2024, arXiv 2402.09353).

    W' = diag(m / n) (W + s B A),    n_o = ||W_o + s B_o A||

One m for each of the layer's outputs o: a row of the matrix (out, in), and for an embedding, which answers with
entries of a row of its table (V, d), a column. n takes no part in the gradient (section 4.3). No matrix of W's size
is formed:

    n_o^2 = ||W_o||^2 + 2 s <W_o, B_o A> + s^2 ||B_o A||^2 = ||W_o||^2 + s <B_o, 2 (W A^T)_o + s B_o (A A^T)>

The layer's output is LoRA's, u = x W^T + s drop(x) A^T B^T + b, with its part before the bias times c = m / n:

    y = u + (c - 1) (u - b)

m starts as n, so that c is exactly 1 and y is u, bit for bit. A factor t of `weft.activate` scales the change of the
weight, W + t (W' - W), and several adapters' changes add up, each made from W itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from weft import ops
from weft.config import DoRA
from weft.linalg import LowRank
from weft.nn import Factors, LoRALayer, VariantRule, storage_of
from weft.variants.rule import rule_for


class Norms(NamedTuple):
    """The norms of a layer's outputs, (outputs) each, in float32 or float64.

    Attributes:
        n: the norm, or 1 where it is zero.
        above_zero: 1 where the norm is above zero, else 0: there the direction is not defined, and c is m + 1.
    """

    n: Tensor
    above_zero: Tensor


@dataclass(frozen=True)
class DoRARule(VariantRule):
    """Scales W + s B A to the trained magnitudes."""

    trains_magnitude = True

    def output(self, layer: LoRALayer, output: Tensor | None, x: Tensor, factors: Factors, scale: float) -> Tensor:
        """The output, with its change scaled; see the module."""
        excess = _excess(factors, _norms_of(layer, factors))
        bias = getattr(layer, "bias", None)
        if scale == 1 and len(layer.active) == 1:
            return _rescaled(layer, layer.add_update(output, x, factors, factors.scaling), excess, bias)
        base = layer.base_output(x)  # `output` may hold other adapters' changes too
        changed = layer.add_update(base, x, factors, factors.scaling)
        return torch.add(
            base if output is None else output, _rescaled(layer, changed, excess, bias) - base, alpha=scale
        )

    def weight(self, layer: LoRALayer, weight: Tensor, base: Tensor, factors: Factors, scale: float) -> Tensor:
        """weight + (c - 1) base + c s B A, in place of `weight`."""
        change = factors.low_rank().to(dtype=weight.dtype)
        excess = _excess(factors, _norms(layer, base, _squared_norms(layer, base), change)).detach().to(weight.dtype)
        weight.addcmul_(base, excess.unsqueeze(1 - layer.output_dim), value=scale)
        if layer.output_dim == 0:
            B, A = change.B * (1 + excess).unsqueeze(1), change.A
        else:
            B, A = change.B, change.A * (1 + excess)
        return weight.addmm_(B, A, alpha=scale * change.scaling)

    def refusal(self, kind: type[LoRALayer], module: nn.Module) -> str | None:
        """A weight in a form that weft cannot read has no values here to take norms of."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        if weight.is_floating_point() or storage_of(module) is not None:
            return None
        return f"DoRA takes norms of the weight, and this one is stored as {weight.dtype}; load the base unquantised"

    def sharing_refusal(self, kind: type[LoRALayer], other: type[LoRALayer]) -> str | None:
        """An embedding has magnitudes for the columns of its table, an output head for the rows."""
        if kind.output_dim == other.output_dim:
            return None
        return "DoRA scales the weight by rows in the one and by columns in the other"

    def start_magnitude(self, kind: type[LoRALayer], W: Tensor, factors: Factors) -> Tensor:
        """The norms themselves, so that the layer starts as it is."""
        norms = _norms(kind, W, _squared_norms(kind, W), factors.low_rank())
        return norms.n * norms.above_zero


@rule_for.register
def _(variant: DoRA) -> VariantRule:
    return DoRARule()


def _excess(factors: Factors, norms: Norms) -> Tensor:
    """c - 1, (outputs): kept apart from 1, so that a narrow dtype does not round it away."""
    assert factors.magnitude is not None
    return factors.magnitude.to(norms.n.dtype) / norms.n - norms.above_zero


def _rescaled(layer: LoRALayer, u: Tensor, excess: Tensor, bias: Tensor | None) -> Tensor:
    """u + (c - 1) (u - b)."""
    return ops.rescale(u, layer.as_bias(excess), None if bias is None else layer.as_bias(bias))


@torch.no_grad()
def _squared_norms(kind: type[LoRALayer] | LoRALayer, W: Tensor) -> Tensor:
    """||W_o||^2 for each output o, in float32 or float64."""
    dtype = torch.promote_types(W.dtype, torch.float32)
    n: Tensor = torch.linalg.vector_norm(W, dim=1 - kind.output_dim, dtype=dtype)
    return n.square()


@torch.no_grad()
def _norms(kind: type[LoRALayer] | LoRALayer, W: Tensor, squared: Tensor, change: LowRank) -> Norms:
    """||W_o + s B_o A|| for each output o, from ||W_o||^2; costs one product of W with r vectors."""
    B, A, s = change.B, change.A, change.scaling
    if kind.output_dim == 1:
        W, B, A = W.T, A.T, B.T
    with torch.autocast("cpu" if W.is_meta else W.device.type, enabled=False):
        cross = (A.to(W.dtype) @ W.T).T.to(squared.dtype)  # (outputs, r); faster than W A^T for a small r
        A, B = A.to(squared.dtype), B.to(squared.dtype)
        inner = (B * torch.addmm(cross, B, A @ A.T, beta=2, alpha=s)).sum(1)
    square = squared.add(inner, alpha=s)
    above_zero = square > 0  # rounding may leave it a little below
    return Norms(torch.where(above_zero, square, 1).sqrt(), above_zero.to(square.dtype))


T = TypeVar("T")


@dataclass(frozen=True)
class _Seen(Generic[T]):
    """A value, and the tensors it was computed from: their storages, and their versions, which each change raises."""

    value: T
    tensors: tuple[tuple[ReferenceType[torch.UntypedStorage], int], ...]


class _Memory(Generic[T]):
    """The value last computed for each `Factors`, good while the tensors it was computed from are as they were."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Factors, _Seen[T]] = WeakKeyDictionary()

    def recall(self, factors: Factors, tensors: tuple[Tensor, ...], compute: Callable[[], T]) -> T:
        """The value, computed if it has to be."""
        seen = self._seen.get(factors)
        if seen is not None and all(
            storage() is tensor.untyped_storage() and version == tensor._version
            for (storage, version), tensor in zip(seen.tensors, tensors, strict=True)
        ):
            return seen.value
        value = compute()
        self._seen[factors] = _Seen(value, tuple((ref(t.untyped_storage()), t._version) for t in tensors))
        return value

    def forget(self, factors: Factors) -> None:
        """Drops the value: the tensors are about to change."""
        self._seen.pop(factors, None)


_squares: _Memory[Tensor] = _Memory()
_known_norms: _Memory[Norms] = _Memory()


def _norms_of(layer: LoRALayer, factors: Factors) -> Norms:
    """The norms for a forward pass: ||W||^2 once while W is frozen, and all of them once while the factors are, too.

    Fused optimizers change a tensor and leave its version: so nothing is kept that depends on a tensor which is
    being trained.
    """
    # The tensor that W is, or is computed from: a quantised weight has its values made only where they are needed.
    held, A, B = layer.weight, factors.lora_A, factors.lora_B
    weight_learns = held.requires_grad and torch.is_grad_enabled()
    if weight_learns or ops.is_transformed() or held.is_meta or any(t.is_inference() for t in (held, A, B)):
        if weight_learns:
            _squares.forget(factors)
            _known_norms.forget(factors)
        W = layer.matrix(layer)
        return _norms(layer, W, _squared_norms(layer, W), factors.low_rank())

    def compute() -> Norms:
        W = layer.matrix(layer)
        squared = _squares.recall(factors, (held,), lambda: _squared_norms(layer, W))
        return _norms(layer, W, squared, factors.low_rank())

    if A.requires_grad or B.requires_grad or factors.prefix is not None:  # a prefix looks like the whole
        return compute()
    return _known_norms.recall(factors, (held, A, B), compute)
