"""The common harness: one table of everything that can be adapted. Each law runs over every row and dtype.

A new layer kind, initializer or variant adds its rows here (or, from outside the package, builds a `Case`
of its own, as tests/test_extension.py does) and inherits all the laws.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import weft

NARROW = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*NARROW, torch.float64)


class PlainSubclass(nn.Linear):
    """A Linear with a forward of its own that computes the same."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


_FIRST = weft.LoRAConfig(rank=2, alpha=4, targets="0")


@dataclass(frozen=True)
class Case:
    """One thing that can be adapted.

    Attributes:
        name: how the test is called.
        layers: makes the layers of an `nn.Sequential`; the adapted layer is the first.
        batch: makes an input, in float32 where it is floating-point.
        config: what is attached.
        tied: the weight of the last layer is the first one's.
        dtypes: those that the base's own forward can take.
    """

    name: str
    layers: Callable[[], list[nn.Module]]
    batch: Callable[[], Tensor]
    config: weft.LoRAConfig = _FIRST
    tied: bool = False
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """A fresh base with weights that depend on nothing but the case."""
        with torch.random.fork_rng():
            torch.manual_seed(len(self.name))
            model = nn.Sequential(*self.layers())
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 1.5)
        if self.tied:
            model[-1].weight = model[0].weight
        return model.to(dtype)

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same input on every call."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            x = self.batch()
        return x.to(dtype) if x.is_floating_point() else x

    def with_config(self, **settings: object) -> "Case":
        """The case with other settings of its configuration."""
        return replace(self, config=replace(self.config, **settings))  # type: ignore[arg-type]


def _gpt2_conv1d() -> list[nn.Module]:
    layer = Conv1D(nf=7, nx=5)
    nn.init.normal_(layer.bias)
    return [layer]


def _ids() -> Tensor:
    return torch.tensor([[1, 0, 3, 3], [8, 2, 0, 1]])


def _conv_cases() -> Iterator[Case]:
    sizes = {1: (9,), 2: (9, 8), 3: (6, 7, 5)}
    for d, conv in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1):
        batch = partial(torch.randn, 2, 4, *sizes[d])
        yield Case(f"conv{d}d", lambda conv=conv: [conv(4, 6, 3)], batch)
        yield Case(f"conv{d}d_unbatched", lambda conv=conv: [conv(4, 6, 3)], partial(torch.randn, 4, *sizes[d]))
        yield Case(f"conv{d}d_depthwise", lambda conv=conv: [conv(4, 8, 3, groups=4, bias=False)], batch)
        for mode in ("zeros", "reflect", "replicate", "circular"):
            yield Case(
                f"conv{d}d_{mode}",
                lambda conv=conv, mode=mode: [
                    conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode=mode)
                ],
                batch,
            )
            yield Case(
                f"conv{d}d_same_{mode}",
                lambda conv=conv, mode=mode, d=d: [
                    conv(4, 6, (4, 3, 2)[:d], padding="same", dilation=(1, 2, 1)[:d], padding_mode=mode)
                ],
                batch,
            )


LAYERS = (
    Case("linear", lambda: [nn.Linear(5, 7)], partial(torch.randn, 3, 4, 5)),
    Case("linear_vector", lambda: [nn.Linear(5, 7)], partial(torch.randn, 5)),
    Case("linear_no_bias", lambda: [nn.Linear(7, 5, bias=False)], partial(torch.randn, 3, 7)),
    Case("linear_subclass", lambda: [PlainSubclass(5, 7)], partial(torch.randn, 3, 5)),
    Case("gpt2_conv1d", _gpt2_conv1d, partial(torch.randn, 3, 4, 5)),
    Case("embedding", lambda: [nn.Embedding(9, 5)], _ids),
    Case("embedding_padding", lambda: [nn.Embedding(9, 5, padding_idx=0)], _ids),
    *_conv_cases(),
)
"""One layer of each kind."""

_adapted = weft.LoRAConfig(rank=2, alpha=4, targets="0", bias="adapted")
_all = weft.LoRAConfig(rank=2, alpha=4, targets="0", bias="all")

MODELS = (
    Case("bias_linear", lambda: [nn.Linear(5, 7)], partial(torch.randn, 3, 4, 5), _adapted),
    Case("bias_gpt2_conv1d", _gpt2_conv1d, partial(torch.randn, 3, 4, 5), _adapted),
    Case("bias_conv2d", lambda: [nn.Conv2d(4, 6, 3, groups=2)], partial(torch.randn, 2, 4, 6, 5), _adapted),
    Case(
        "bias_all_linear_norm",
        lambda: [nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3)],
        partial(torch.randn, 3, 5),
        _all,
    ),
    Case(
        "bias_all_conv_norm",
        lambda: [nn.Conv1d(4, 6, 3), nn.GroupNorm(2, 6), nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)],
        partial(torch.randn, 2, 4, 9),
        _all,
    ),
    Case("bias_all_gpt2_conv1d", lambda: [nn.Linear(5, 5), *_gpt2_conv1d()], partial(torch.randn, 3, 5), _all),
    Case(
        "bias_all_unbatched",
        lambda: [nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3)],
        partial(torch.randn, 4, 9),
        _all,
    ),
    Case(
        "whole_head",
        lambda: [nn.Linear(5, 7), nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))],
        partial(torch.randn, 3, 5),
        weft.LoRAConfig(rank=2, targets="0", train_modules=("1",)),
    ),
    Case(
        "whole_batch_norm",
        lambda: [nn.Linear(5, 7), nn.BatchNorm1d(7)],
        partial(torch.randn, 3, 5),
        weft.LoRAConfig(rank=2, targets="0", train_modules=("1",)),
    ),
    Case(
        "rank_stabilized",
        lambda: [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6)],
        partial(torch.randn, 3, 5),
        weft.LoRAConfig(rank=2, targets="all-linear", rank_pattern={"2": 3}, scaling=weft.RankStabilized()),
    ),
    Case("tied", lambda: [nn.Embedding(9, 5), nn.Linear(5, 9)], _ids, tied=True),
    Case(
        "tied_biases",
        lambda: [nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)],
        partial(torch.randn, 3, 5),
        _adapted,
        tied=True,
    ),
)
"""Several layers together: biases, whole modules, tied weights."""


def _with_dora(cases: tuple[Case, ...], *names: str) -> tuple[Case, ...]:
    return tuple(
        replace(case.with_config(variant=weft.DoRA()), name=f"{case.name}_dora") for case in cases if case.name in names
    )


DORA_LAYERS = _with_dora(
    LAYERS, "linear", "linear_vector", "linear_no_bias", "linear_subclass", "gpt2_conv1d", "embedding",
    "embedding_padding", "conv1d_unbatched", "conv2d_depthwise", "conv2d_reflect", "conv3d_same_circular",
)  # fmt: skip
DORA_MODELS = _with_dora(
    MODELS, "bias_gpt2_conv1d", "bias_conv2d", "bias_all_conv_norm", "whole_head", "rank_stabilized", "tied_biases"
)  # fmt: skip
"""With DoRA, which trains magnitudes too: each layer kind, and what else meets them in a model."""

MERGEABLE = LAYERS + MODELS + DORA_LAYERS + DORA_MODELS
"""What holds its weights as they are."""


def eight_bit(width: int, out: int, *, bias: bool = True, threshold: float = 0.0) -> nn.Linear:
    """A random linear layer in bitsandbytes' 8 bits."""
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(width, out, bias=bias, has_fp16_weights=False, threshold=threshold)
    return layer.to("cpu")  # which quantises it


def four_bit(width: int, out: int, *, kind: str = "nf4", nested: bool = True) -> nn.Linear:
    """A random linear layer in bitsandbytes' 4 bits."""
    from bitsandbytes.nn import Linear4bit

    return Linear4bit(width, out, quant_type=kind, compress_statistics=nested).to("cpu")


QUANTIZED_LAYERS = (
    Case("8bit", lambda: [eight_bit(5, 7)], partial(torch.randn, 3, 4, 5)),
    Case("8bit_outliers", lambda: [eight_bit(6, 4, bias=False, threshold=1.0)], partial(torch.randn, 3, 6)),
    Case("4bit_nf4", lambda: [four_bit(20, 16)], partial(torch.randn, 3, 4, 20), dtypes=NARROW),
    Case("4bit_fp4", lambda: [four_bit(16, 24, kind="fp4", nested=False)], partial(torch.randn, 3, 16), dtypes=NARROW),
)
QUANTIZED = (
    *QUANTIZED_LAYERS,
    *_with_dora(QUANTIZED_LAYERS, "8bit", "8bit_outliers", "4bit_nf4"),
    Case("bias_8bit", lambda: [eight_bit(5, 7)], partial(torch.randn, 3, 4, 5), _adapted),
    Case(
        "bias_all_8bit",
        lambda: [nn.Linear(5, 6), nn.LayerNorm(6), eight_bit(6, 5), nn.Tanh(), eight_bit(5, 3)],
        partial(torch.randn, 3, 5),
        weft.LoRAConfig(rank=2, alpha=4, targets=("0", "2"), bias="all"),
    ),
)
"""Layers that bitsandbytes quantised: they are not merged into, and all the other laws hold."""

CASES = MERGEABLE + QUANTIZED
IN_DTYPES = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]
"""Every case in every dtype."""


def pretend_training(model: nn.Module, seed: int = 2) -> None:
    """Moves every trainable parameter, as training would: by noise of the size of a weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in weft.trainable_parameters(model):
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def adapted(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The case's base with its adapter attached and, as it were, trained."""
    model = weft.attach(case.model(dtype), case.config)
    pretend_training(model)
    return model


@torch.no_grad()
def output(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output without a graph, a copy."""
    return model(x).clone()


def bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, to compare with later."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def identical(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN and the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_raw(a), _raw(b))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class Anatomy:
    """Everything of a model that attaching and detaching must leave as it was.

    Attributes:
        notes: the keys of what is made anew each time that the state is asked for, as bitsandbytes does.
    """

    state: dict[str, Tensor]
    notes: set[str]
    values: dict[str, Tensor]
    classes: dict[str, type]
    attributes: dict[str, set[str]]
    requires_grad: dict[str, bool]
    training: dict[str, bool]
    objects: dict[str, int]

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        state = model.state_dict(keep_vars=True)
        modules = dict(model.named_modules())
        return cls(
            state=dict(state),
            notes={key for key, tensor in model.state_dict(keep_vars=True).items() if tensor is not state[key]},
            values={key: copy.deepcopy(value.detach()) for key, value in state.items()},
            classes={path: type(module) for path, module in modules.items()},
            attributes={path: set(vars(module)) for path, module in modules.items()},
            requires_grad={key: value.requires_grad for key, value in state.items()},
            training={path: module.training for path, module in modules.items()},
            objects={path: id(module) for path, module in modules.items()},
        )

    def check_tensors_untouched(self, model: nn.Module) -> None:
        """Every key of the state dict is there, and is the very tensor that it was, bit for bit."""
        now = model.state_dict(keep_vars=True)
        for key, tensor in self.state.items():
            assert now[key] is tensor or key in self.notes, key
            assert identical(now[key], self.values[key]), key

    def check_restored(self, model: nn.Module) -> None:
        """Nothing tells that anything was ever attached."""
        self.check_tensors_untouched(model)
        now = Anatomy.of(model)
        assert list(now.state) == list(self.state)
        assert now.classes == self.classes
        assert now.attributes == self.attributes
        assert now.requires_grad == self.requires_grad
        assert now.training == self.training
        assert now.objects == self.objects


def check_laws(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Laws 1 to 3 in one go, for a part that stands outside the package (tests/laws goes into each)."""
    model, x = case.model(dtype).eval(), case.input(dtype)
    before, base = Anatomy.of(model), output(model, x)

    weft.attach(model, case.config)
    assert torch.equal(output(model, x), base)
    before.check_tensors_untouched(model)

    model(x).double().square().sum().backward()
    assert all(p.grad is not None for p in weft.trainable_parameters(model))
    pretend_training(model)
    trained = output(model, x)
    assert not torch.equal(trained, base)

    loose = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for undo in ("snapshot", "patch"):
        for _ in range(3):
            with weft.merged(model, undo=undo):  # type: ignore[arg-type]
                error = (output(model, x).double() - trained.double()).abs().max()
                assert error <= loose * trained.double().abs().max()
            before.check_tensors_untouched(model)
    assert identical(output(model, x), trained)

    twin = copy.deepcopy(model)
    weft.detach(model)
    before.check_restored(model)
    assert identical(output(model, x), base)
    assert identical(output(twin, x), trained)
