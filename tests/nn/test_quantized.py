"""Layers that bitsandbytes quantised: their values, their gradients, and what stays as it is."""

import math
import subprocess
import sys
import weakref

import pytest
import torch
from harness import QUANTIZED_LAYERS, Case, eight_bit, four_bit, output, pretend_training
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import weft
from weft.errors import TargetError
from weft.nn import storage_of
from weft.nn.quantized import round_to_8bit

FIRST = weft.LoRAConfig(rank=2, alpha=4, targets="0")
LAYERS = {
    "8bit": lambda: eight_bit(70, 40),
    "nf4": lambda: four_bit(70, 40),
    "fp4": lambda: four_bit(128, 64, kind="fp4", nested=False),
}


def as_stored(W: Tensor, make: str) -> nn.Linear:
    """A layer of one of `LAYERS` that was made from W."""
    import bitsandbytes as bnb

    out, width = W.shape
    layer = {
        "8bit": lambda: bnb.nn.Linear8bitLt(width, out, bias=False, has_fp16_weights=False),
        "nf4": lambda: bnb.nn.Linear4bit(width, out, bias=False, quant_type="nf4"),
        "fp4": lambda: bnb.nn.Linear4bit(width, out, bias=False, quant_type="fp4", compress_statistics=False),
    }[make]()
    layer.weight.data = W.clone()
    return layer.to("cpu")


@pytest.mark.parametrize("make", LAYERS)
def test_the_values_are_those_that_the_layer_multiplies_with(make: str) -> None:
    layer = LAYERS[make]().train()  # on a CPU, 8 bits round the input too while they evaluate
    storage = storage_of(layer)
    assert storage is not None
    W = storage.dense()
    assert W.shape == storage.shape == (layer.out_features, layer.in_features)
    with torch.no_grad():
        found = layer(torch.eye(layer.in_features)) - layer.bias
    assert torch.allclose(found.T, W, atol=1e-6)


@pytest.mark.parametrize("make", LAYERS)
def test_a_sample_is_of_these_values_and_not_farther_from_the_original_than_it_says(make: str) -> None:
    W = 0.05 * torch.randn(40, 70) * torch.rand(40, 1)
    storage = storage_of(as_stored(W, make))
    assert storage is not None
    places = torch.randperm(W.numel())
    entries, errors = storage.sample(places)
    assert torch.allclose(entries, storage.dense().flatten()[places], atol=1e-7)
    off = (entries - W.flatten()[places]).abs()
    assert (off <= errors + 1e-7).all()
    assert off.max() > 0.2 * errors.max()  # it says no more than it has to


def test_rounding_to_8_bits_is_what_the_layer_does() -> None:
    W = torch.randn(40, 70)
    W[3] = 0
    storage = storage_of(as_stored(W, "8bit"))
    assert storage is not None
    assert torch.allclose(round_to_8bit(W), storage.dense(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", QUANTIZED_LAYERS, ids=lambda case: case.name)
def test_output_and_gradients_are_those_of_the_base_and_of_the_factors(
    case: Case, dtype: torch.dtype, training: bool
) -> None:
    """In float64: the factors see the input as it came, and the input gets its gradient through both."""
    model, x = case.model(dtype).train(training), case.input(dtype)
    base, W = output(model, x).double(), storage_of(model[0]).dense().double()
    weft.attach(model, case.config)
    pretend_training(model)
    f = model[0].adapters["default"]
    x.requires_grad_()
    y = model(x)
    A, B, z = (t.detach().double().requires_grad_() for t in (f.lora_A, f.lora_B, x))
    expected = base + f.scaling * z @ A.T @ B.T
    upstream = torch.randn_like(y)
    (dz,) = torch.autograd.grad(F.linear(z, W), z, upstream.double(), retain_graph=True)
    (expected * upstream.double()).sum().backward()
    y.backward(upstream)
    loose = 8 * torch.finfo(dtype).eps
    for found, wanted in ((y, expected), (f.lora_A.grad, A.grad), (f.lora_B.grad, B.grad), (x.grad, z.grad + dz)):
        assert (found.double() - wanted).abs().max() <= loose * wanted.abs().max()


def test_dropout_reaches_the_branch_alone() -> None:
    model, x = nn.Sequential(eight_bit(64, 8)), torch.randn(4, 64)
    base = output(model, x)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", dropout=0.5))
    pretend_training(model)
    torch.manual_seed(1)
    first = output(model, x)
    assert not torch.equal(first, output(model, x))
    torch.manual_seed(1)
    assert torch.equal(first, output(model, x))
    with weft.active(model, None):
        assert torch.equal(output(model, x), base)


def test_the_gradient_of_the_input_is_bitsandbytes_own() -> None:
    model, x = nn.Sequential(eight_bit(24, 16)), torch.randn(5, 24, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    weft.attach(model, FIRST)
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_checkpointing_frees_the_inputs_of_quantised_layers() -> None:
    """Their own operation keeps its input where checkpointing cannot see it."""
    model = nn.Sequential(eight_bit(16, 16), nn.Tanh(), eight_bit(16, 16))
    weft.attach(model, weft.LoRAConfig(rank=2))
    inputs: list[weakref.ref[Tensor]] = []
    model[2].register_forward_pre_hook(lambda module, args: inputs.append(weakref.ref(args[0])))
    y = checkpoint(model, torch.randn(8, 16, requires_grad=True), use_reentrant=False)
    assert inputs[0]() is None
    y.sum().backward()


def test_dora_and_pissa_read_the_values() -> None:
    model, x = nn.Sequential(eight_bit(24, 16)).eval(), torch.randn(5, 24)
    W = storage_of(model[0]).dense()
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", variant=weft.DoRA()))
    assert torch.allclose(model[0].adapters["default"].magnitude, W.norm(dim=1))
    weft.detach(model)
    weft.attach(model, weft.LoRAConfig(rank=16, alpha=16, targets="0", init=weft.PiSSA(num_power_iters=None)))
    assert torch.allclose(model[0].adapters["default"].lora_B @ model[0].adapters["default"].lora_A, W, atol=1e-5)
    assert output(model, x).isfinite().all()


def test_frozen_dora_makes_the_values_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = weft.LoRAConfig(rank=2, targets="0", variant=weft.DoRA())
    model, x = nn.Sequential(eight_bit(24, 16)).eval(), torch.randn(5, 24)
    adapter = weft.collect(weft.attach(model, config))
    weft.detach(model)
    weft.attach(model, adapter)
    expected, made = output(model, x), []
    storage = type(storage_of(model[0]))
    dense = storage.dense
    monkeypatch.setattr(storage, "dense", lambda self: made.append(self) or dense(self))
    assert torch.equal(output(model, x), expected)
    assert made == []


def test_a_plan_counts_the_numbers_and_not_the_bytes() -> None:
    model = nn.Sequential(four_bit(64, 32), eight_bit(32, 48), nn.Linear(48, 8))
    plan = weft.plan(model, weft.LoRAConfig(rank=2))
    assert [(m.path, m.kind, m.shape) for m in plan.modules] == [
        ("0", "linear", (32, 64)),
        ("1", "linear", (48, 32)),
        ("2", "linear", (8, 48)),
    ]
    assert plan.base_parameters == sum(math.prod(s) + s[0] for s in ((32, 64), (48, 32), (8, 48)))
    assert (
        plan.to_dict()
        == weft.plan(
            nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 48), nn.Linear(48, 8)), weft.LoRAConfig(rank=2)
        ).to_dict()
    )


def test_what_is_not_quantised_yet_is_refused() -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in (Linear8bitLt(6, 6, has_fp16_weights=False), Linear8bitLt(6, 6), Linear4bit(6, 6)):
        with pytest.raises(TargetError, match=r"'0' cannot be adapted: its class .* move the model to its device"):
            weft.attach(nn.Sequential(layer), FIRST)
        assert layer.weight.dtype == torch.float32  # looking at it quantised nothing


def test_a_quantised_module_cannot_be_trained_whole() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(eight_bit(6, 6)))
    with pytest.raises(TargetError, match=r"train_modules: '1\.0' is quantised, and cannot be trained whole"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0", train_modules=("1",)))


def test_bitsandbytes_is_imported_only_for_its_layers() -> None:
    code = (
        "import sys, torch, weft; m = torch.nn.Sequential(torch.nn.Linear(4, 4)); "
        "weft.attach(m, weft.LoRAConfig(rank=2)); assert 'bitsandbytes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
