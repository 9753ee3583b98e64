"""The LoRA layer: the one forward of every layer kind, and the factors it reads.

Four things vary and are kept apart: the layer's kind (a subclass here), how it stores its weight
(`weft.nn.storage`), the initializer (`weft.init`), and the variant (`weft.variants`), whose rule each `Factors`
carries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from weft import ops
from weft.adapter import Layout
from weft.errors import StateError
from weft.linalg import LowRank
from weft.nn.bank import Adapted
from weft.nn.storage import frozen_product, storage_of
from weft.registry import Registry


class VariantRule(ABC):
    """What a variant does with a layer; `weft.variants` registers one rule for each type of variant.

    Attributes:
        additive: whether the change of the weight is the same whatever the weight is. Only such a change can be
            subtracted again, as a merge with ``undo="patch"`` does; for others a snapshot is kept.
        trains_magnitude: whether `Factors.magnitude` is trained.
    """

    additive: ClassVar[bool] = False
    trains_magnitude: ClassVar[bool] = False

    @abstractmethod
    def output(self, layer: "LoRALayer", output: Tensor | None, x: Tensor, factors: "Factors", scale: float) -> Tensor:
        """The layer's output with this adapter, from the `output` without it.

        None stands for ``layer.base_output(x)``, not computed yet: a rule may then compute both at once.
        """

    @abstractmethod
    def weight(self, layer: "LoRALayer", weight: Tensor, base: Tensor, factors: "Factors", scale: float) -> Tensor:
        """The layer's weight with this adapter, as a matrix (out, in), from the `weight` without it.

        It may be written in place of `weight`. Computed in the dtype of `weight`: float32, or float64. `base` is W
        itself, which is `weight` where no other adapter changed it before; for an additive rule it may be zeros.
        """

    def refusal(self, kind: type["LoRALayer"], module: nn.Module) -> str | None:
        """Why this variant cannot adapt a module that its layer kind can; None if it can."""
        return None

    def sharing_refusal(self, kind: type["LoRALayer"], other: type["LoRALayer"]) -> str | None:
        """Why two modules of these kinds that share one weight cannot share one adapter's part; None if they can."""
        return None

    def start_magnitude(self, kind: type["LoRALayer"], W: Tensor, factors: "Factors") -> Tensor | None:
        """The magnitude that a new adapter starts from, for the weight as a matrix W (out, in), or None."""
        return None


class Factors(nn.Module):
    """One adapter on one layer.

    Attributes:
        lora_A: (r, in).
        lora_B: (out, r).
        bias: the bias that replaces the base's, or None where it is not trained.
        offset_A, offset_B: A0 (r, in) and B0 (out, r) of an initializer that starts from W itself: the change
            is s (B A - B0 A0), zero at the start. None for the others.
        magnitude: one number for each of the layer's outputs, where the variant trains them; None for the others.
        scaling: s.
        dropout: the probability of dropping an entry of the branch's input.
        prefix: how many of the r rows of A and columns of B take part, from the first; None for all of them. See
            `weft.model.prefix`.
    """

    lora_A: Tensor
    lora_B: Tensor
    bias: nn.Parameter | None
    magnitude: nn.Parameter | None
    offset_A: Tensor | None
    offset_B: Tensor | None
    scaling: float
    dropout: float
    rule: VariantRule
    prefix: int | None

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        scaling: float,
        rule: VariantRule,
        *,
        dropout: float = 0.0,
        bias: Tensor | None = None,
        offset: tuple[Tensor, Tensor] | None = None,
        magnitude: Tensor | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        # Straight to where `nn.Module` keeps them: setting each as an attribute takes many times as long.
        for name, tensor in (("lora_A", A), ("lora_B", B), ("bias", bias), ("magnitude", magnitude)):
            self._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=trainable)
        self._buffers["offset_A"], self._buffers["offset_B"] = (None, None) if offset is None else offset
        self.__dict__.update(scaling=scaling, dropout=dropout, rule=rule, prefix=None)

    @property
    def rank(self) -> int:
        """r, whatever takes part."""
        return self.lora_A.shape[0]

    def pair(self) -> tuple[Tensor, Tensor]:
        """A and B as far as they take part: the first `prefix` rows and columns, views of the whole."""
        # Past the attribute look-up of `nn.Module`, which costs more than a small product.
        A, B = self._parameters["lora_A"], self._parameters["lora_B"]
        assert A is not None
        assert B is not None
        return (A, B) if self.prefix is None else (A[: self.prefix], B[:, : self.prefix])

    def offset(self) -> tuple[Tensor, Tensor] | None:
        """A0 and B0 likewise, if there are any."""
        A, B = self._buffers["offset_A"], self._buffers["offset_B"]
        if A is None or B is None:
            return None
        return (A, B) if self.prefix is None else (A[: self.prefix], B[:, : self.prefix])

    def low_rank(self, read: Callable[[Tensor], Tensor] = Tensor.detach) -> LowRank:
        """The change of the weight, as a value: s (B A), or s (B A - B0 A0) at rank 2r.

        Args:
            read: what the value holds in a tensor's place; the default shares them.
        """
        (A, B), offset = self.pair(), self.offset()
        value = LowRank(read(B), read(A), self.scaling)
        return value if offset is None else value - LowRank(read(offset[1]), read(offset[0]), self.scaling)

    def equals(self, other: "Factors") -> bool:
        """Whether the other factors are these, or hold the same values."""
        mine, theirs = self.magnitude, other.magnitude
        return self is other or (
            self.scaling == other.scaling
            and (mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs)))
            and torch.equal(self.lora_A, other.lora_A)
            and torch.equal(self.lora_B, other.lora_B)
        )

    def extra_repr(self) -> str:
        (out, rank), width = self.lora_B.shape, self.lora_A.shape[1]
        return f"{out} x {width}, rank={rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"


class LoRALayer(Adapted):
    """A base layer with low-rank changes: ``output = base(x) + sum of s B A x`` over the active adapters.

    Attributes:
        kind: the layer kind's name.
        output_dim: the dimension of the matrix (out, in) along which the layer's outputs lie. An embedding, whose
            matrix is its table (V, d), answers with entries of a row: 1.
    """

    weight: Tensor
    bias: Tensor
    kind: ClassVar[str]
    output_dim: ClassVar[int] = 0

    def forward(self, input: Tensor) -> Tensor:
        """The base's output, changed by each active adapter in turn; shapes are the base layer's."""
        if not self.active:  # merged, or switched off: nothing between the caller and the base
            return super().forward(input)  # type: ignore[no-any-return]
        output = None
        bank = self._modules["adapters"]._modules  # type: ignore[union-attr]  # as in `Factors.pair`
        for name, scale in self.active.items():
            factors = bank[name]
            assert isinstance(factors, Factors)
            if factors._parameters["lora_A"].is_meta and not input.is_meta:  # type: ignore[union-attr]  # never None
                raise StateError(
                    f"the factors of adapter {name!r} hold no values (on the meta device, or offloaded); "
                    "dispatch or offload the model before attaching an adapter, not after"
                )
            output = factors.rule.output(self, output, input, factors, scale)
            bias = factors._parameters.get("bias")
            if bias is not None:
                output = output + scale * self.as_bias(bias - self.bias).to(output.dtype)
        assert output is not None
        return output

    def base_output(self, x: Tensor) -> Tensor:
        """The output of the layer without its adapters."""
        plain: Callable[[Tensor], Tensor] = super().forward  # the base layer's class comes next in the MRO
        storage = storage_of(self)
        if storage is None or any(p is not None and p.requires_grad for p in self._parameters.values()):
            return plain(x)
        return frozen_product(x, plain, storage)

    def add_update(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        """The output (None: the base's) plus scaling times the product of x, dropped out, with B A or B A - B0 A0."""
        offset = factors.offset()
        if offset is None:
            return self.add_product(output, x, factors, scaling)
        if output is None:
            output = self.base_output(x)
        # Two products of one shape, subtracted: exactly zero while the factors are where they started.
        x = self.branch_input(x, factors)
        update = self.product(x, *factors.pair()) - self.product(x, *offset)
        return torch.add(output, update.to(output.dtype), alpha=scaling)

    def branch_input(self, x: Tensor, factors: Factors) -> Tensor:
        """The input of the adapter's branch: x with dropout while training."""
        return ops.drop(x, factors.dropout, self.training)

    def as_bias(self, bias: Tensor) -> Tensor:
        """A bias, or another value for each output (out), in a shape that broadcasts over the layer's output."""
        return bias

    @classmethod
    @abstractmethod
    def serves(cls, module: nn.Module) -> bool:
        """Whether this kind is for modules of that type."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this module cannot be adapted although it is of the type; None if it can."""
        return None

    @classmethod
    @abstractmethod
    def shape(cls, module: nn.Module) -> tuple[int, int]:
        """(out, in) of the module's factors: B is (out, r), A is (r, in)."""

    @classmethod
    @abstractmethod
    def layout(cls, module: nn.Module) -> Layout:
        """How B A lies in the module's weight."""

    @classmethod
    @abstractmethod
    def matrix(cls, module: nn.Module) -> Tensor:
        """The module's weight as the matrix (out, in) that B A adds to; of a quantised one, its values, made anew."""

    @classmethod
    def as_weight(cls, module: nn.Module, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: a matrix (out, in) in the shape of the module's weight."""
        return matrix

    @abstractmethod
    def product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """The layer's output if B A were its weight and it had no bias."""

    def add_product(self, output: Tensor | None, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        """The output (None: the base's) plus scaling times `product` of `branch_input`; a faster way overrides it."""
        if output is None:
            output = self.base_output(x)
        product = self.product(self.branch_input(x, factors), *factors.pair())
        return torch.add(output, product.to(output.dtype), alpha=scaling)


L = TypeVar("L", bound=type[LoRALayer])

layer_kinds: Registry[type[LoRALayer]] = Registry("layer kind")
_kind_by_type: dict[type[nn.Module], type[LoRALayer] | None] = {}  # what `layer_kind_of` found out


def register_layer_kind(kind: L) -> L:
    """A class decorator that adds a layer kind under its name."""
    layer_kinds.register(kind.kind)(kind)
    _kind_by_type.clear()
    return kind


def layer_kind_of(module: nn.Module) -> type[LoRALayer] | None:
    """The layer kind for a module, or None if it is not a layer that weft adapts.

    The kind registered last is asked first, so that an added one can serve a subclass of torch's layers.
    """
    own = type(module)
    if own not in _kind_by_type:
        kinds = [layer_kinds[name] for name in reversed(list(layer_kinds))]
        _kind_by_type[own] = next((kind for kind in kinds if kind.serves(module)), None)
    return _kind_by_type[own]


def differs_from_base(module: nn.Module, plain: Callable[[Tensor], Tensor], example: Tensor) -> bool:
    """Whether a subclass's own forward computes something other than `plain` does, on one small example.

    An adapter's branch adds to the output of the plain layer; a subclass that, say, scales its output would
    silently give another result merged than unmerged.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta or not weight.is_floating_point():
        return False
    was_training = module.training
    module.training = False
    try:
        with torch.no_grad():
            found, expected = module.forward(example), plain(example)  # not called: its hooks are none of our business
    except Exception:  # a forward that takes other arguments fails in its own way
        return True
    finally:
        module.training = was_training
    return found.shape != expected.shape or not torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-3)
