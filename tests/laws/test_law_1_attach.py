"""Law 1: attaching changes nothing."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from harness import (
    CASES,
    DORA_LAYERS,
    IN_DTYPES,
    LAYERS,
    MERGEABLE,
    QUANTIZED_LAYERS,
    Anatomy,
    Case,
    identical,
    output,
    pretend_training,
)
from torch import Tensor, nn

import weft
from weft.errors import StateError, TargetError

INITIALIZERS = (weft.Kaiming(), weft.Gaussian(), weft.PiSSA(), weft.PiSSA(num_power_iters=None))


@pytest.mark.parametrize(("case", "dtype"), IN_DTYPES)
def test_outputs_and_the_base_are_what_they_were(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(dtype).eval(), case.input(dtype)
    before, expected = Anatomy.of(model), output(model, x)
    weft.attach(model, case.config)
    assert torch.equal(output(model, x), expected)
    before.check_tensors_untouched(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("case", LAYERS + DORA_LAYERS, ids=lambda case: case.name)
def test_a_model_may_still_change_a_layers_output_in_place(case: Case, dropout: float) -> None:
    """So does SpecAugment in wav2vec 2.0, in training."""
    layer, x = case.model(), case.input()
    dropout = 0.0 if isinstance(layer[0], nn.Embedding) else dropout
    weft.attach(layer, replace(case.config, dropout=dropout))
    changed = layer(x)
    changed[..., 0] = 0.0
    changed.square().sum().backward()
    assert all(parameter.grad is not None for parameter in weft.trainable_parameters(layer))


@pytest.mark.parametrize("init", INITIALIZERS, ids=repr)
@pytest.mark.parametrize("case", LAYERS + DORA_LAYERS + QUANTIZED_LAYERS, ids=lambda case: case.name)
def test_every_initializer_starts_at_the_base_even_under_dropout(case: Case, init: weft.config.Initializer) -> None:
    model, x = case.model(), case.input()
    dropout = 0.0 if isinstance(model[0], nn.Embedding) else 0.5
    before, expected = Anatomy.of(model), output(model, x)
    weft.attach(model, replace(case.config, init=init, dropout=dropout))
    assert model.training
    assert torch.equal(output(model, x), expected)
    before.check_tensors_untouched(model)


@pytest.mark.parametrize("init", [weft.PiSSA(), weft.PiSSA(num_power_iters=None)], ids=repr)
def test_pissa_starts_from_the_principal_part_of_the_weight(init: weft.PiSSA) -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False))
    weft.attach(model, weft.LoRAConfig(rank=3, alpha=6, targets="0", init=init))
    A, B = model[0].adapters["default"].lora_A, model[0].adapters["default"].lora_B
    U, S, Vh = torch.linalg.svd(model[0].weight.detach())
    # The randomised SVD is exact here: 3 + its oversampling reaches the layer's whole rank of 6.
    assert torch.allclose(2 * B @ A, U[:, :3] * S[:3] @ Vh[:3], atol=1e-5)
    assert torch.allclose(torch.linalg.matrix_norm(A), torch.linalg.matrix_norm(B))


@pytest.mark.parametrize("init", [weft.PiSSA(), weft.PiSSA(num_power_iters=None)], ids=repr)
def test_pissa_starts_at_the_base_in_layers_that_take_other_kernels_than_tiny_ones(init: weft.PiSSA) -> None:
    model, x = nn.Sequential(nn.Linear(128, 96)), torch.randn(3, 128)
    expected = output(model, x)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", init=init))
    assert torch.equal(output(model, x), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_second_adapter_does_not_disturb_a_trained_first(case: Case) -> None:
    model, x = case.model().eval(), case.input()
    weft.attach(model, case.config, name="first")
    pretend_training(model)
    trained, factors = output(model, x), dict(model.named_parameters())
    weft.attach(model, case.config, name="second")
    assert weft.adapter_names(model) == ("first", "second")
    with weft.active(model, "first"):
        assert identical(output(model, x), trained)
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in factors.items())


def test_no_adapter_active_is_the_base() -> None:
    for case in CASES:
        model, x = case.model().eval(), case.input()
        expected = output(model, x)
        weft.attach(model, case.config)
        pretend_training(model)
        assert not torch.equal(output(model, x), expected), case.name
        with weft.active(model, None):
            assert identical(output(model, x), expected), case.name
        assert not torch.equal(output(model, x), expected), case.name


def test_the_same_object_stays_what_it_was_an_instance_of() -> None:
    layer = nn.Linear(5, 7)
    model = nn.Sequential(layer)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    assert model[0] is layer
    assert isinstance(layer, nn.Linear)
    assert dict(model.named_modules())["0"] is layer


def test_an_optimizer_made_before_still_holds_the_base() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(model[0].weight), id(model[0].bias)} == held


def test_hooks_fire_as_before_and_once() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5, requires_grad=True)
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda module, args: calls.append("before"))
    model[0].register_forward_hook(lambda module, args, y: calls.append("after"))
    model[0].register_full_backward_hook(lambda module, gx, gy: calls.append("backward"))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    assert calls == []
    model(x).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_a_forward_hook_that_changes_the_output_applies_to_the_adapted_one() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    pretend_training(model)
    plain = output(model, x)
    model[0].register_forward_hook(lambda module, args, y: 2 * y)
    assert torch.equal(output(model, x), 2 * plain)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_deep_copy_is_another_model_with_an_adapter_of_its_own(case: Case) -> None:
    model, x = case.model().eval(), case.input()
    base = output(model, x)
    weft.attach(model, case.config)
    pretend_training(model)
    trained = output(model, x)
    twin = copy.deepcopy(model)
    assert identical(output(twin, x), trained)
    pretend_training(twin, seed=3)
    assert identical(output(model, x), trained)
    weft.detach(twin)
    assert identical(output(twin, x), base)
    assert identical(output(model, x), trained)
    assert weft.adapter_names(model) == ("default",)


@pytest.mark.parametrize("case", MERGEABLE, ids=lambda case: case.name)
def test_a_pickled_model_comes_back_with_its_adapter(case: Case) -> None:
    model, x = case.model().eval(), case.input()
    base = output(model, x)
    weft.attach(model, case.config)
    pretend_training(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert identical(output(twin, x), output(model, x))
    weft.merge(twin)
    weft.unmerge(twin)
    weft.detach(twin)
    assert identical(output(twin, x), base)
    assert type(twin[0]) is type(case.model()[0])


@pytest.mark.parametrize("undo", ["snapshot", "patch"])
def test_a_copy_of_a_merged_model_can_be_unmerged_alone(undo: str) -> None:
    model, x = nn.Sequential(nn.Linear(16, 16)).eval(), torch.randn(3, 16)
    base = output(model, x)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    pretend_training(model)
    weft.merge(model, undo=undo)  # type: ignore[arg-type]
    merged = output(model, x)
    twin = copy.deepcopy(model)
    pretend_training(model, seed=4)  # must not reach the copy, nor what undoes its merge
    weft.unmerge(twin)
    with weft.active(twin, None):
        assert identical(output(twin, x), base)
    assert identical(output(model, x), merged)


def test_buffers_keep_working_in_the_base() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    before = model[1].running_mean.clone()
    model(torch.randn(3, 5))
    assert int(model[1].num_batches_tracked) == 1
    assert not torch.equal(model[1].running_mean, before)


def test_a_whole_module_keeps_buffers_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", train_modules=("1",)))
    model(torch.randn(3, 5))
    assert int(model[1].num_batches_tracked) == 0
    assert "1.running_mean" in weft.collect(model).tensors


def test_a_trainable_adapter_freezes_the_base_and_a_frozen_one_does_not() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    adapter = weft.collect(model)
    assert not model[0].weight.requires_grad
    weft.detach(model)
    weft.attach(model, adapter)
    assert model[0].weight.requires_grad
    assert not any(p.requires_grad for p in model[0].adapters.parameters())


def test_several_active_adapters_add_up() -> None:
    for case in LAYERS + DORA_LAYERS:
        model, x = case.model(torch.float64).eval(), case.input(torch.float64)
        base = output(model, x)
        for seed, name in enumerate(("a", "b")):
            weft.attach(model, case.config, name=name)
            pretend_training(model, seed=seed)
        changes = {}
        for name in ("a", "b"):
            with weft.active(model, name):
                changes[name] = output(model, x) - base
        with weft.active(model, ["a", "b"]):
            assert torch.allclose(output(model, x), base + changes["a"] + changes["b"]), case.name
        with weft.active(model, {"a": 0.5, "b": -2.0}):
            assert torch.allclose(output(model, x), base + 0.5 * changes["a"] - 2 * changes["b"]), case.name


def test_the_bias_is_scaled_with_its_adapter() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)).double(), torch.randn(3, 5, dtype=torch.float64)
    base = output(model, x)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", bias="adapted"))
    pretend_training(model)
    change = output(model, x) - base
    with weft.active(model, {"default": 0.25}):
        assert torch.allclose(output(model, x), base + 0.25 * change)


def test_modules_that_share_a_weight_share_the_factors_and_keep_their_own_biases() -> None:
    first, last = nn.Linear(5, 5), nn.Linear(5, 5)
    last.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), last)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", bias="adapted"))
    mine, theirs = first.adapters["default"], last.adapters["default"]
    assert mine.lora_A is theirs.lora_A
    assert mine.lora_B is theirs.lora_B
    assert mine.bias is not theirs.bias
    assert len(list(weft.trainable_parameters(model))) == 4


def test_attaching_to_a_part_of_an_adapted_model_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 7)), nn.Linear(7, 5))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    with pytest.raises(StateError, match=r"another module"):
        weft.attach(model[0], weft.LoRAConfig(rank=2, targets="0"))
    part = nn.Sequential(nn.Sequential(nn.Linear(5, 7)), nn.Linear(7, 5))
    weft.attach(part[0], weft.LoRAConfig(rank=2, targets="0"))
    with pytest.raises(StateError, match=r"another module"):
        weft.attach(part, weft.LoRAConfig(rank=2))


@pytest.mark.parametrize("name", ["", "a.b", "a b", "keys", "train", "forward"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_touched(name: str) -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    before = Anatomy.of(model)
    with pytest.raises(StateError, match="name"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name=name)
    before.check_restored(model)


def test_a_name_that_is_taken_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="a")
    with pytest.raises(StateError, match="'a' is attached already"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="a")


def test_a_failing_initializer_leaves_the_model_as_it_was() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 7))
    before = Anatomy.of(model)
    with pytest.raises(TargetError, match=r"'0' cannot be adapted: init=PiSSA"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0", init=weft.PiSSA()))
    assert Anatomy.of(model).classes == before.classes
    assert weft.adapter_names(model) == ()


def test_attaching_works_per_module_and_not_per_pair() -> None:
    """Fifty adapters on a model: each attach visits each module a bounded number of times."""
    visits = 0

    class Counted(nn.Module):
        def __getattribute__(self, name: str) -> object:
            nonlocal visits
            visits += name == "_modules"
            return super().__getattribute__(name)

    blocks: list[nn.Module] = []
    for _ in range(20):
        block = Counted()
        block.fc = nn.Linear(4, 4)
        blocks.append(block)
    model = nn.ModuleList(blocks)
    counts = []
    for i in range(50):
        visits = 0
        weft.attach(model, weft.LoRAConfig(rank=1), name=f"a{i}")
        counts.append(visits)
    assert counts[-1] <= counts[1]


def test_outputs_in_training_equal_the_base_with_dropout_layers_of_its_own() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3)), torch.randn(8, 5)

    def run() -> Tensor:
        torch.manual_seed(3)
        return output(model, x)

    expected = run()
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    assert identical(run(), expected)


def test_a_tied_weight_can_be_named_by_any_of_its_holders() -> None:
    tied = next(case for case in CASES if case.name == "tied")
    for target in ("0", "1"):
        model, x = tied.model(), tied.input()
        expected = output(model, x)
        weft.attach(model, weft.LoRAConfig(rank=2, targets=target))
        assert torch.equal(output(model, x), expected)
        assert model[0].adapters["default"].lora_A is model[1].adapters["default"].lora_A
