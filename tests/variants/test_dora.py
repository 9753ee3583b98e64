"""DoRA against its definition in float64, and what it keeps from one forward pass to the next."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import LAYERS, MODELS, Anatomy, Case, identical, output, pretend_training
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import weft
from weft import DoRA, LoRAConfig, ops
from weft.errors import BindingError, ConfigError, TargetError

DOUBLE = {"rtol": 1e-10, "atol": 1e-11}
CONFIG = LoRAConfig(rank=2, alpha=3, targets="0", variant=DoRA())


def scaled(layer: nn.Module, W: Tensor, A: Tensor, B: Tensor, m: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """c W and c s B A in the shape of W, for c = m / ||W + s B A|| with a norm that takes no part in the gradient."""
    change = s * B @ A
    change = change.T if type(layer).__name__ == "Conv1D" else change.reshape(W.shape)
    last = isinstance(layer, nn.Embedding) or type(layer).__name__ == "Conv1D"  # where W has the layer's outputs
    over = 0 if last else tuple(range(1, W.ndim))
    n = (W + change).square().sum(over, keepdim=True).sqrt().detach()
    c = m.reshape(n.shape) / n
    return c * W, c * change


def trained(case: Case, **settings: object) -> tuple[nn.Sequential, Any]:
    """The adapted model in float64 and its adapter's factors."""
    model = case.model(torch.float64)
    weft.attach(model, replace(case.config, variant=DoRA(), **settings))  # type: ignore[arg-type]
    pretend_training(model)
    factors = model[0].adapters["default"]
    if getattr(model[0], "padding_idx", None) is not None:
        factors.lora_B.data[model[0].padding_idx] = 0
    return model, factors


def linear(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A layer with DoRA, trained as it were."""
    model = nn.Sequential(nn.Linear(5, 7)).to(dtype)
    weft.attach(model, CONFIG)
    pretend_training(model)
    return model


def frozen(model: nn.Sequential) -> nn.Sequential:
    """The same adapter, not to be trained any more."""
    adapter = weft.collect(model)
    weft.detach(model)
    weft.attach(model, adapter)
    return model


def by_definition(model: nn.Sequential, x: Tensor) -> Tensor:
    """The output of a linear layer in float64, from the values that it has now."""
    layer: Any = model[0]
    f = layer.adapters["default"]
    W, A, B, m = (t.detach().double() for t in (layer.weight, f.lora_A, f.lora_B, f.magnitude))
    return nn.functional.linear(x.double(), sum(scaled(layer, W, A, B, m, f.scaling)), layer.bias.double())


def is_right(model: nn.Sequential, x: Tensor) -> bool:
    return torch.allclose(output(model, x).double(), by_definition(model, x), rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_output_and_gradients_are_those_of_the_definition(case: Case, dropout: float) -> None:
    plain = case.model(torch.float64)
    dropout = 0.0 if isinstance(plain[0], nn.Embedding) else dropout
    model, f = trained(case, dropout=dropout)
    x = case.input(torch.float64)
    leaves = [f.lora_A, f.lora_B, f.magnitude] + ([x.requires_grad_()] if x.is_floating_point() else [])
    torch.manual_seed(3)
    y = model(x)

    torch.manual_seed(3)
    dropped = ops.drop(x, dropout, training=True)
    W, change = scaled(plain[0], plain[0].weight.detach(), f.lora_A, f.lora_B, f.magnitude, f.scaling)
    no_bias = {"0.bias": torch.zeros_like(plain[0].bias)} if getattr(plain[0], "bias", None) is not None else {}
    expected = functional_call(plain, {"0.weight": W}, (x,))
    expected = expected + functional_call(plain, {"0.weight": change, **no_bias}, (dropped,))
    assert torch.allclose(y, expected, **DOUBLE)
    upstream = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        assert torch.allclose(mine, theirs, **DOUBLE)


@pytest.mark.parametrize("case", [LAYERS[0], MODELS[-1]], ids=lambda case: case.name)
def test_every_part_of_it_learns(case: Case) -> None:
    model = weft.attach(case.model(), replace(case.config, variant=DoRA()))
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=0.01)
    before = [p.detach().clone() for p in weft.trainable_parameters(model)]
    for _ in range(2):  # B and m move in the first step, A from the second on
        optimizer.zero_grad()
        (model(case.input()) - 1).square().sum().backward()
        optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(weft.trainable_parameters(model), before, strict=True))


def test_a_factor_scales_the_change_of_the_weight_and_changes_add_up_beside_lora() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)).double(), torch.randn(3, 5, dtype=torch.float64)
    W, b = model[0].weight.detach().clone(), model[0].bias.detach()
    weft.attach(model, CONFIG, name="dora")
    pretend_training(model)
    f = model[0].adapters["dora"]
    weft.attach(model, replace(CONFIG, variant=weft.LoRA()), name="lora")
    pretend_training(model, seed=3)
    dora = sum(scaled(model[0], W, f.lora_A, f.lora_B, f.magnitude, f.scaling)).detach() - W  # type: ignore[union-attr]
    lora = model[0].adapters["lora"].low_rank().dense()
    for chosen, change in (
        ({"dora": 0.5}, 0.5 * dora),
        ({"dora": 1.0, "lora": 1.0}, dora + lora),
        ({"lora": 2.0, "dora": -1.0}, 2 * lora - dora),
    ):
        with weft.active(model, chosen):
            expected = nn.functional.linear(x, W + change, b)
            assert torch.allclose(output(model, x), expected, **DOUBLE)
            with weft.merged(model):
                assert torch.allclose(model[0].weight, W + change, **DOUBLE)


class Allocations(TorchDispatchMode):
    """Counts what operations give: how many there were, and how many made a new tensor of a given size."""

    def __init__(self, size: int = -1) -> None:
        super().__init__()
        self.size, self.operations, self.made = size, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        mine = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.made += tensor.numel() == self.size and tensor.untyped_storage().data_ptr() not in mine
        self.operations += 1
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layer", [nn.Linear(24, 36), nn.Embedding(36, 24), nn.Conv1d(8, 36, 3)], ids=lambda layer: type(layer).__name__
)
def test_no_matrix_of_the_weights_size_is_made_in_training(layer: nn.Module, dtype: torch.dtype) -> None:
    model = weft.attach(nn.Sequential(copy.deepcopy(layer)).to(dtype), CONFIG)
    x = {
        nn.Linear: torch.randn(5, 24), nn.Embedding: torch.arange(5), nn.Conv1d: torch.randn(2, 8, 5),
    }[type(layer)]  # fmt: skip
    x = x.to(dtype).requires_grad_() if x.is_floating_point() else x
    with Allocations(size=24 * 36) as count:
        model(x).square().sum().backward()
    made_by_the_base = 1 if isinstance(layer, nn.Embedding | nn.Conv1d) and count.made == 1 else 0
    assert count.made == made_by_the_base


def test_a_magnitude_that_barely_moved_is_not_rounded_away() -> None:
    model, x = nn.Sequential(nn.Linear(32, 512, bias=False)).bfloat16(), torch.randn(64, 32).bfloat16()
    base = output(model, x)
    weft.attach(model, CONFIG)
    with torch.no_grad():
        model[0].adapters["default"].magnitude.mul_(1.003)  # by less than half of bfloat16's spacing at 1
    growth = (output(model, x).double() * base.sign()).sum() / base.double().abs().sum() - 1
    assert abs(growth - 0.003) < 0.0006  # rounding moves single entries, not their mean


def test_a_row_of_zeros_stays_finite_and_learns() -> None:
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(4, 5)
    with torch.no_grad():
        model[0].weight[1] = 0
    base = output(model, x)
    weft.attach(model, CONFIG)
    assert torch.equal(output(model, x), base)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x)[:, 1] - model[0].bias[1] - x[:, 0]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- what is kept between forward passes ----------------------------------------------------------------------------


def test_frozen_norms_are_computed_once() -> None:
    model, x = frozen(linear()), torch.randn(3, 5)
    counts = []
    for _ in range(3):
        with torch.no_grad(), Allocations() as count:
            model(x)
        counts.append(count.operations)
    assert counts[0] > counts[1] == counts[2]


def _merge_and_back(model: nn.Sequential) -> None:
    with weft.merged(model):
        pass


def _scale_the_weight(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight.mul_(3)  # type: ignore[union-attr, operator]


def _scale_B(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].adapters["default"].lora_B.mul_(3)  # type: ignore[index, union-attr]


def _another_weight(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.randn(7, 5))


def _another_storage(model: nn.Sequential) -> None:
    model[0].weight.data = torch.randn(7, 5)


def _load_state(model: nn.Sequential) -> None:
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})


CHANGES = (
    _merge_and_back, _scale_the_weight, _scale_B, _another_weight, _another_storage, _load_state,
    lambda model: model.half().float(), lambda model: model.double(),
)  # fmt: skip


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_norms_follow_whatever_changes(change: Callable[[nn.Sequential], object], settled: bool) -> None:
    model, x = linear(), torch.randn(3, 5)
    model = frozen(model) if settled else model
    assert is_right(model, x)
    change(model)
    x = x.to(model[0].weight.dtype)
    assert is_right(model, x)
    assert is_right(copy.deepcopy(model), x)


@pytest.mark.parametrize("fused", [False, True])
def test_norms_follow_an_optimizer_with_evaluations_in_between(fused: bool) -> None:
    model, x = linear(), torch.randn(3, 5)
    optimizer = torch.optim.AdamW(weft.trainable_parameters(model), lr=0.1, fused=fused)
    for _ in range(3):
        loss = model(x).square().sum()
        assert is_right(model, x)
        loss.backward()
        assert is_right(model, x)
        optimizer.step()
        assert is_right(model, x)


def test_norms_follow_a_base_that_is_trained_under_a_frozen_adapter() -> None:
    model, x = frozen(linear()), torch.randn(3, 5)
    assert model[0].weight.requires_grad
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        assert is_right(model, x)


def test_a_deep_copy_has_norms_of_its_own() -> None:
    model, x = frozen(linear()), torch.randn(3, 5)
    expected = output(model, x)
    twin = copy.deepcopy(model)
    _scale_B(twin)
    assert is_right(twin, x)
    assert identical(output(model, x), expected)


def test_it_works_in_inference_mode_and_compiled() -> None:
    torch._dynamo.reset()
    for model in (linear(), frozen(linear())):
        x = torch.randn(3, 5)
        with torch.inference_mode():
            for _ in range(2):
                assert is_right(model, x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = linear(torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, *weft.trainable_parameters(model)]
    expected = torch.autograd.grad(model(x).square().sum(), leaves)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.allclose(leaf.grad, g, **DOUBLE) for leaf, g in zip(leaves, expected, strict=True))


# ---- plans, values and refusals -------------------------------------------------------------------------------------


def test_the_plan_and_the_adapter_count_the_magnitudes() -> None:
    for case, magnitudes in ((LAYERS[0], 7), (next(c for c in LAYERS if c.name == "embedding"), 5)):
        config = replace(case.config, variant=DoRA())
        plan = weft.plan(case.model(), config)
        plain = weft.plan(case.model(), case.config)
        assert plan.parameters == plain.parameters + magnitudes
        assert plan.modules[0].magnitudes == magnitudes
        model = weft.attach(case.model(), config)
        assert sum(p.numel() for p in weft.trainable_parameters(model)) == plan.parameters
        adapter = weft.collect(model)
        assert adapter.num_parameters == plan.parameters
        assert adapter.nbytes == plan.nbytes
        assert adapter.magnitudes["0"].shape == (magnitudes,)


def test_it_is_planned_and_started_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 7))
        weft.attach(model, CONFIG)
    assert model[0].adapters["default"].magnitude.shape == (7,)
    assert model[0].adapters["default"].magnitude.is_meta


class Packed(nn.Linear):
    """As a quantised layer has it: the weight is bytes."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.uint8), requires_grad=False)


def test_a_quantised_weight_is_refused_before_anything_is_touched() -> None:
    model = nn.Sequential(Packed())
    before = Anatomy.of(model)
    with pytest.raises(TargetError, match=r"'0' cannot be adapted: DoRA takes norms .* torch\.uint8; load the base un"):
        weft.attach(model, CONFIG)
    with pytest.raises(BindingError, match=r"0: found B .*DoRA takes norms"):
        weft.attach(model, weft.collect(weft.attach(nn.Sequential(nn.Linear(6, 6)), CONFIG)), any_base=True)
    before.check_restored(model)


def test_an_embedding_that_shares_its_weight_with_a_head_is_refused_before_anything_is_touched() -> None:
    tied = next(case for case in MODELS if case.name == "tied")
    model = tied.model()
    before = Anatomy.of(model)
    with pytest.raises(TargetError, match=r"'0' shares its weight with '1'.*by rows in the one and by columns"):
        weft.attach(model, replace(tied.config, variant=DoRA()))
    before.check_restored(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: replace(a, magnitudes={}), r"0: found magnitudes none, expected \(7\)"),
        (lambda a: replace(a, magnitudes={"0": torch.ones(5)}), r"0: found magnitudes \(5\), expected \(7\)"),
        (
            lambda a: replace(a, config=replace(a.config, variant=weft.LoRA())),
            r"0: found magnitudes \(7\), expected none with this variant",
        ),
    ],
)
def test_magnitudes_are_bound_exactly_once_or_named(
    change: Callable[[weft.Adapter], weft.Adapter], message: str
) -> None:
    adapter = weft.collect(linear())
    model = nn.Sequential(nn.Linear(5, 7))
    before = Anatomy.of(model)
    with pytest.raises(BindingError, match=message):
        weft.attach(model, change(adapter), any_base=True)
    before.check_restored(model)


def test_magnitudes_without_factors_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"magnitudes: '1' has no factors"):
        replace(weft.collect(linear()), magnitudes={"1": torch.ones(7)})


def test_modules_that_share_a_weight_share_the_magnitude() -> None:
    tied = next(case for case in MODELS if case.name == "tied_biases")
    model = weft.attach(tied.model(), replace(tied.config, variant=DoRA()))
    assert model[0].adapters["default"].magnitude is model[2].adapters["default"].magnitude
    pretend_training(model)
    adapter = weft.collect(model)
    again = weft.attach(tied.model(), adapter, trainable=True)
    assert again[0].adapters["default"].magnitude is again[2].adapters["default"].magnitude
    assert weft.merge(again).tensors == 3  # one weight, two biases

    apart = replace(adapter, magnitudes={"0": adapter.magnitudes["0"], "2": adapter.magnitudes["2"] + 1})
    with pytest.raises(weft.errors.MergeError, match="does not change alike"):
        weft.merge(weft.attach(tied.model(), apart))


def test_by_name_at_the_edges() -> None:
    assert LoRAConfig.from_dict({"variant": "dora"}).variant == DoRA()
    assert LoRAConfig(variant=DoRA()).to_dict()["variant"] == "dora"
