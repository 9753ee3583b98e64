"""What each layer kind computes, and its gradients, against the dense form in float64: the layer with W + s B A."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from harness import LAYERS, MODELS, Case, output, pretend_training
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import weft
from weft import LoRAConfig, ops

DOUBLE = {"rtol": 1e-10, "atol": 1e-11}


def named(*names: str) -> list[Case]:
    """Some of the harness's cases."""
    return [case for case in LAYERS + MODELS if case.name in names]


SOME = named("linear", "embedding", "conv2d_reflect", "bias_all_conv_norm", "whole_head", "tied", "tied_biases")


def dense_weight(layer: nn.Module, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """W + s B A in the shape of the weight, as `weft.adapter.Layout` says."""
    change = scaling * B @ A
    if type(layer).__name__ == "Conv1D":
        change = change.T
    return layer.weight.detach() + change.reshape(layer.weight.shape)


def trained(case: Case, **settings: object) -> tuple[nn.Sequential, nn.Module]:
    """The adapted model in float64 and its adapter's factors; the padding row of B has stayed zero, as it does."""
    model = case.model(torch.float64)
    weft.attach(model, replace(case.config, **settings))  # type: ignore[arg-type]
    pretend_training(model)
    factors = model[0].adapters["default"]
    if getattr(model[0], "padding_idx", None) is not None:
        factors.lora_B.data[model[0].padding_idx] = 0
    return model, factors


@pytest.mark.parametrize("rank", [1, 3, "full"])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_output_and_gradients_are_those_of_the_dense_weight(case: Case, rank: int | str) -> None:
    plain = case.model(torch.float64)
    full = min(weft.plan(plain, replace(case.config, rank=1)).modules[0].shape)
    model, factors = trained(case, rank=full if rank == "full" else rank, alpha=3.0)
    x = case.input(torch.float64)
    leaves = [factors.lora_A, factors.lora_B]
    if x.is_floating_point():
        leaves.append(x.requires_grad_())

    y = model(x)
    weight = dense_weight(plain[0], factors.lora_A, factors.lora_B, 3.0 / factors.lora_A.shape[0])
    expected = functional_call(plain, {"0.weight": weight}, (x,))
    assert torch.allclose(y, expected, **DOUBLE)

    upstream = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        assert torch.allclose(mine, theirs, **DOUBLE)


@pytest.mark.parametrize(
    "case",
    named("linear", "gpt2_conv1d", "conv1d_circular", "conv2d_depthwise", "conv2d_same_reflect"),
    ids=lambda case: case.name,
)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    model, factors = trained(case)

    def run(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        names = {"0.adapters.default.lora_A": A, "0.adapters.default.lora_B": B}
        return functional_call(model, names, (x,))

    x = case.input(torch.float64).requires_grad_()
    A, B = (p.detach().clone().requires_grad_() for p in (factors.lora_A, factors.lora_B))
    assert torch.autograd.gradcheck(run, (x, A, B), fast_mode=True)


@pytest.mark.parametrize("init", [weft.PiSSA(), weft.PiSSA(num_power_iters=None)], ids=repr)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_an_initializer_with_an_offset_computes_the_difference_from_its_start(case: Case, init: weft.PiSSA) -> None:
    model = case.model(torch.float64)
    weft.attach(model, replace(case.config, init=init))
    factors = model[0].adapters["default"]
    A0, B0 = factors.lora_A.detach().clone(), factors.lora_B.detach().clone()
    pretend_training(model)
    plain, x = case.model(torch.float64), case.input(torch.float64)
    s = factors.scaling
    W = dense_weight(plain[0], factors.lora_A, factors.lora_B, s) - dense_weight(plain[0], A0, B0, s)
    expected = functional_call(plain, {"0.weight": plain[0].weight + W}, (x,))
    assert torch.allclose(model(x), expected, **DOUBLE)


@pytest.mark.parametrize("case", [c for c in LAYERS if "embedding" not in c.name], ids=lambda case: case.name)
def test_dropout_drops_entries_of_the_input_and_keeps_the_mean(case: Case) -> None:
    model, _ = trained(case, dropout=0.25)
    x = case.input(torch.float64)
    with weft.active(model, None):
        base = output(model, x)
    torch.manual_seed(5)
    y = output(model, x)
    torch.manual_seed(5)
    dropped = ops.drop(x, 0.25, training=True)
    model.eval()
    with weft.active(model, None):
        base_dropped = output(model, dropped)
    assert torch.allclose(y, base + output(model, dropped) - base_dropped, **DOUBLE)
    assert not torch.allclose(y, output(model, x))


def test_dropout_is_right_on_average() -> None:
    case = LAYERS[0]
    model, _ = trained(case, dropout=0.5)
    x = case.input(torch.float64)
    mean = torch.stack([output(model, x) for _ in range(3000)]).mean(0)
    expected = output(model.eval(), x)
    # Five standard deviations of a mean of 3000, for a branch of about this size.
    assert (mean - expected).abs().max() < 5 * expected.abs().max() / 3000**0.5


def test_both_products_of_an_offset_see_the_same_dropped_input() -> None:
    """At the start the difference is exactly zero under every mask: law 1 in training."""
    model, x = nn.Sequential(nn.Linear(6, 6)), torch.randn(64, 6)
    base = output(model, x)
    weft.attach(model, LoRAConfig(rank=2, targets="0", dropout=0.5, init=weft.PiSSA()))
    for _ in range(5):
        assert torch.equal(output(model, x), base)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_autocast_gives_the_dtype_of_the_base_and_trains(case: Case) -> None:
    model, x = case.model(), case.input()
    with torch.autocast("cpu", torch.bfloat16):
        dtype = model(x).dtype
    weft.attach(model, case.config)
    pretend_training(model)
    exact = output(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == dtype
    # bfloat16 keeps 8 bits; a handful of roundings of sums of a few dozen terms of size about 1.
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max().clamp(min=1)
    y.float().square().sum().backward()
    for parameter in weft.trainable_parameters(model):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_half_precision_base_keeps_its_dtype_and_its_factors_are_float32(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.input(dtype)
    weft.attach(model, case.config)
    pretend_training(model)
    y = model(x)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    for parameter in weft.trainable_parameters(model):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


def gradients(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    parameters = list(weft.trainable_parameters(model))
    return list(torch.autograd.grad(run(x).square().sum(), parameters))


# Reentrant checkpointing needs an input that requires a gradient, which token ids cannot.
CHECKPOINTED = [(case, False) for case in SOME] + [(case, True) for case in SOME if case.input().is_floating_point()]


@pytest.mark.parametrize(("case", "reentrant"), CHECKPOINTED, ids=lambda value: getattr(value, "name", str(value)))
def test_gradient_checkpointing_changes_nothing(case: Case, reentrant: bool) -> None:
    model = case.model().eval()
    weft.attach(model, case.config)
    pretend_training(model)
    x = case.input()
    if x.is_floating_point():
        x.requires_grad_()
    parameters = list(weft.trainable_parameters(model))
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    for parameter, expected in zip(parameters, plain, strict=True):
        assert torch.equal(parameter.grad, expected)


def test_checkpointing_recomputes_the_same_dropout() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(5, 6)
    weft.attach(model, LoRAConfig(rank=2, targets="all-linear", dropout=0.5))
    pretend_training(model)
    torch.manual_seed(7)
    plain = gradients(model, model, x)
    torch.manual_seed(7)
    recomputed = gradients(model, lambda x: checkpoint(model, x, use_reentrant=False), x)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("case", named("linear", "conv2d_reflect", "whole_head", "tied"), ids=lambda case: case.name)
def test_compiling_gives_one_graph_and_the_same_outputs_and_gradients(case: Case) -> None:
    torch._dynamo.reset()
    model, x = case.model().eval(), case.input()
    weft.attach(model, case.config)
    pretend_training(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    for mine, theirs in zip(gradients(model, compiled, x), gradients(model, model, x), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for chosen in (None, "default"):  # switching is seen by the compiled model too
            weft.activate(model, chosen)
            assert torch.allclose(compiled(x), model(x), atol=1e-6)
        weft.merge(model)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        weft.unmerge(model)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_inference_mode_and_no_grad_build_no_graph() -> None:
    for case in LAYERS:
        model, _ = trained(case)
        x = case.input(torch.float64)
        expected = model(x)
        assert expected.requires_grad
        with torch.no_grad():
            assert not model(x).requires_grad
        with torch.inference_mode():
            assert torch.equal(model(x), expected)


def test_the_padding_row_gets_no_gradient() -> None:
    model = nn.Sequential(nn.Embedding(9, 5, padding_idx=0))
    weft.attach(model, LoRAConfig(rank=2, targets="0"))
    model(torch.tensor([0, 3, 0])).sum().backward()
    gradient = model[0].adapters["default"].lora_B.grad
    assert not gradient[0].any()
    assert gradient[3].any()
    assert not gradient[4].any()


def test_the_activation_is_never_cast_up() -> None:
    """The float32 factors of a bfloat16 base are cast down; what autograd keeps of size T is bfloat16."""
    model, x = nn.Sequential(nn.Linear(8, 8)).bfloat16(), torch.randn(1000, 8).bfloat16()
    weft.attach(model, LoRAConfig(rank=2, targets="0"))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x)
    large = [t for t in saved if t.numel() >= 1000]
    assert large
    assert all(t.dtype == torch.bfloat16 for t in large)


def test_scaling_comes_from_the_configuration_and_its_patterns() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    weft.attach(model, LoRAConfig(rank=4, alpha=8, rank_pattern={"1": 2}, alpha_pattern={"2": 1.0}))
    assert [layer.adapters["default"].scaling for layer in model] == [2.0, 4.0, 0.25]
    weft.detach(model)
    weft.attach(model, LoRAConfig(rank=4, alpha=8, scaling=weft.RankStabilized()))
    assert [layer.adapters["default"].scaling for layer in model] == [4.0, 4.0, 4.0]


def test_initializers_start_as_their_papers_say() -> None:
    model = nn.Sequential(nn.Linear(400, 300))
    weft.attach(model, LoRAConfig(rank=64, targets="0", init=weft.Gaussian()))
    A, B = model[0].adapters["default"].lora_A, model[0].adapters["default"].lora_B
    assert not B.any()
    # 25,600 draws: the standard deviation of the sample's is 1/sqrt(2n), 0.45% of it.
    assert A.std().item() == pytest.approx(1 / 64, rel=0.025)
    weft.detach(model)
    weft.attach(model, LoRAConfig(rank=64, targets="0"))
    A = model[0].adapters["default"].lora_A
    assert A.abs().max() <= 400**-0.5
    assert A.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.025)


def test_the_same_seed_gives_the_same_adapter() -> None:
    adapters = []
    for _ in range(2):
        torch.manual_seed(11)
        model = nn.Sequential(nn.Linear(6, 6), nn.Conv1d(4, 4, 3))
        weft.attach(model, LoRAConfig(rank=2, targets=("0", "1")))
        adapters.append(weft.collect(model))
    for path in ("0", "1"):
        assert torch.equal(adapters[0].factors[path].A, adapters[1].factors[path].A)


def test_training_moves_the_adapter_and_only_it() -> None:
    for case in LAYERS + MODELS:
        model, x = case.model(), case.input()
        before = copy.deepcopy(model.state_dict())
        weft.attach(model, case.config)
        parameters = list(weft.trainable_parameters(model))
        start = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        model.eval()  # batch norm's running statistics are the base's own affair
        for _ in range(2):  # B moves in the first step, A from the second on
            optimizer.zero_grad()
            (model(x) - 1).square().sum().backward()
            optimizer.step()
        assert all(not torch.equal(a, b) for a, b in zip(parameters, start, strict=True)), case.name
        now = model.state_dict()
        assert all(torch.equal(now[key], tensor) for key, tensor in before.items()), case.name
