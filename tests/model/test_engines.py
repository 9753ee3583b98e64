"""A real tiny Llama with an adapter under torch's compiler, checkpointing, autocast and function transforms."""

import pytest
import torch
from tiny_llama import adapted, gradients, llama, loss_of, token_ids
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import weft
from weft.errors import StateError

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # in float64
LORA = weft.LoRAConfig(rank=2, targets=("all-linear", "embed_tokens"))
DORA = weft.LoRAConfig(rank=2, variant=weft.DoRA())
COMPANIONS = weft.LoRAConfig(rank=2, companions=(weft.Prefix(length=2), weft.Bottleneck(width=3)))
DROPOUT = weft.LoRAConfig(rank=2, dropout=0.1)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("config", [LORA, DORA, COMPANIONS], ids=["lora", "dora", "companions"])
def test_a_compiled_training_step_is_one_graph_and_the_eager_step(config: weft.LoRAConfig) -> None:
    torch._dynamo.reset()
    model, ids = adapted(config, layers=1), token_ids()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = loss_of(compiled, ids)
    found.backward()
    mine = gradients(model)
    model.zero_grad()
    expected = loss_of(model, ids)
    expected.backward()
    torch.testing.assert_close(found, expected, **EXACT)
    assert len(mine) == len(list(weft.trainable_parameters(model)))
    assert_equal(mine, gradients(model))


def test_a_compiled_step_with_dropout_is_one_graph_and_has_the_gradient_of_what_it_computed() -> None:
    """A compiler draws other entries than the eager layer; the same ones in the backward pass as in the forward."""
    torch._dynamo.reset()
    model, ids = adapted(DROPOUT, layers=1), token_ids()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = loss_of(compiled, ids, seed=4)
    loss.backward()
    assert loss_of(compiled, ids, seed=4) == loss
    assert loss_of(compiled, ids, seed=5) != loss
    with torch.no_grad():
        assert loss_of(compiled, ids, seed=4) != loss_of(compiled, ids, seed=5)
    parameters = list(weft.trainable_parameters(model))
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
    sides = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
        sides.append(loss_of(compiled, ids, seed=4).item())
    # transformers takes norms in float32; other entries in one of the passes would be off by tens of percent.
    assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(float(slope), rel=5e-3)


@torch.no_grad()
def test_an_exported_model_computes_what_the_adapted_one_does() -> None:
    model, ids = adapted(LORA, layers=1).eval(), token_ids()
    exported = torch.export.export(model, (), {"input_ids": ids}).module()
    torch.testing.assert_close(exported(input_ids=ids).logits, model(input_ids=ids).logits, **EXACT)
    with weft.active(model, None):
        assert not torch.allclose(exported(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_compiled_wrapper_is_no_model_to_attach_to() -> None:
    model = llama()
    with pytest.raises(StateError, match=r"the OptimizedModule around a model.*attach to the model itself"):
        weft.attach(torch.compile(model), LORA)
    assert weft.adapter_names(model) == ()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("variant", [weft.LoRA(), weft.DoRA()], ids=repr)
def test_checkpointing_changes_no_bit_of_a_gradient(reentrant: bool, variant: weft.LoRA | weft.DoRA) -> None:
    model, ids = adapted(weft.LoRAConfig(rank=2, dropout=0.1, variant=variant), torch.float32), token_ids()
    loss = loss_of(model, ids)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # it goes backward only through inputs that need a gradient
        model.enable_input_require_grads()
    again = loss_of(model, ids)
    again.backward()
    assert torch.equal(loss, again)
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("inside", [True, False], ids=["backward_inside", "backward_outside"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [DROPOUT, DORA], ids=["lora", "dora"])
def test_autocast_trains_float32_factors_with_the_gradients_of_bfloat16(
    config: weft.LoRAConfig, base: torch.dtype, inside: bool
) -> None:
    model, ids = adapted(config, base), token_ids()
    exact = adapted(config, base).double()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, ids)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    loss_of(exact, ids).backward()
    found, expected = gradients(model), gradients(exact)
    assert found.keys() == expected.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    mine, theirs = (torch.cat([named[name].flatten().double() for name in expected]) for named in (found, expected))
    assert (mine - theirs).norm() < 0.1 * theirs.norm()  # bfloat16 keeps 8 bits, through two blocks and back


# torch.func sees torch's own operations.


@pytest.mark.parametrize("config", [LORA, DORA], ids=["lora", "dora"])
def test_per_sample_gradients(config: weft.LoRAConfig) -> None:
    model, ids = adapted(config, layers=1), token_ids(3)
    factors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], row: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, values, kwargs={"input_ids": row[None]}).logits
        return logits.square().sum()

    each = vmap(grad(loss), (None, 0))(factors, ids)
    for place, row in enumerate(ids):
        model.zero_grad()
        loss(dict(model.named_parameters()), row).backward()
        assert_equal({name: gradient[place] for name, gradient in each.items()}, gradients(model))


def test_a_stack_of_adapters_by_vmap() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7, dtype=torch.float64))
    weft.attach(model, weft.LoRAConfig(rank=2))
    x, stack = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 7, 2, dtype=torch.float64)

    def run(B: Tensor) -> Tensor:
        return functional_call(model, {"0.adapters.default.lora_B": B}, (x,))

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(vmap(run)(stack), torch.stack([run(B) for B in stack]), **EXACT)


def test_dropout_under_vmap_asks_for_its_randomness() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, dropout=0.5))
    x = torch.randn(5).expand(64, 5)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(model)(x)
    model[0].adapters["default"].lora_B.data.normal_()
    assert len(vmap(model, randomness="different")(x).unique(dim=0)) > 16


@pytest.mark.parametrize("config", [weft.LoRAConfig(rank=2), DORA], ids=["lora", "dora"])
def test_forward_mode_is_right_or_refused(config: weft.LoRAConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7, dtype=torch.float64))
    weft.attach(model, config)
    model[0].adapters["default"].lora_B.data.normal_()
    x, direction = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = (model(x + direction) - model(x)).detach()  # it is an affine function
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(jvp(model, (x,), (direction,))[1], expected, **EXACT)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):  # torch.func's alone is served
        model(forward_ad.make_dual(x, direction))
