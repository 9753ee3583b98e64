"""Law 2: detaching restores everything, bit for bit, the very same objects."""

import pytest
import torch
from harness import CASES, IN_DTYPES, MERGEABLE, Anatomy, Case, identical, output, pretend_training
from torch import nn

import weft
from weft.errors import MergeError, StateError


@pytest.mark.parametrize(("case", "dtype"), IN_DTYPES)
def test_everything_is_restored_after_training(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(dtype).eval(), case.input(dtype)
    before, expected = Anatomy.of(model), output(model, x)
    weft.attach(model, case.config)
    pretend_training(model)
    assert not torch.equal(output(model, x), expected)
    weft.detach(model)
    before.check_restored(model)
    assert identical(output(model, x), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradient_and_training_flags_come_back_one_by_one(case: Case) -> None:
    model = case.model()
    next(model.parameters()).requires_grad_(False)
    list(model.modules())[-1].eval()
    before = Anatomy.of(model)
    weft.attach(model, case.config, name="a")
    weft.attach(model, case.config, name="b")
    assert not any(p.requires_grad for p in before.state.values())
    weft.detach(model, "a")
    assert not any(p.requires_grad for p in before.state.values())
    weft.detach(model, "b")
    before.check_restored(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_detaching_one_leaves_the_others_as_they_were(case: Case) -> None:
    model, x = case.model().eval(), case.input()
    before = Anatomy.of(model)
    weft.attach(model, case.config, name="a")
    pretend_training(model)
    expected = output(model, x)
    weft.attach(model, case.config, name="b")
    weft.detach(model, "b")
    assert weft.adapter_names(model) == ("a",)
    weft.activate(model, "a")
    assert identical(output(model, x), expected)
    weft.detach(model, "a")
    before.check_restored(model)


def test_detaching_the_active_adapter_leaves_the_base_active() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5)
    base = output(model, x)
    for name in ("a", "b"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name=name)
    pretend_training(model)
    weft.detach(model, "b")
    assert identical(output(model, x), base)


def test_hooks_stay_and_fire() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5)
    calls: list[str] = []
    model[0].register_forward_hook(lambda module, args, y: calls.append("from before"))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    model[0].register_forward_pre_hook(lambda module, args: calls.append("from between"))
    weft.detach(model)
    model(x)
    assert calls == ["from between", "from before"]


def test_what_was_put_on_the_layer_meanwhile_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    model[0].note = "mine"
    weft.detach(model)
    assert model[0].note == "mine"


@pytest.mark.parametrize("undo", ["snapshot", "patch"])
@pytest.mark.parametrize("case", MERGEABLE, ids=lambda case: case.name)
def test_detaching_while_merged_undoes_the_merge_first(case: Case, undo: str) -> None:
    model = case.model()
    before = Anatomy.of(model)
    weft.attach(model, case.config)
    pretend_training(model)
    weft.merge(model, undo=undo)  # type: ignore[arg-type]
    weft.detach(model)
    before.check_restored(model)


def test_after_a_final_merge_detaching_keeps_the_merged_weights() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)), torch.randn(3, 5)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    pretend_training(model)
    weft.merge(model, undo=None)
    merged = output(model, x)
    with pytest.raises(MergeError, match="final"):
        weft.unmerge(model)
    weft.detach(model)
    assert type(model[0]) is nn.Linear
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    assert identical(output(model, x), merged)


def test_after_a_final_merge_the_others_can_be_used_once_the_merged_one_is_off() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7)).double(), torch.randn(3, 5, dtype=torch.float64)
    base, changes = output(model, x), {}
    for seed, name in enumerate(("a", "b")):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name=name)
        pretend_training(model, seed)
    for name in ("a", "b"):
        with weft.active(model, name):
            changes[name] = output(model, x) - base
    weft.merge(model, "a", undo=None)
    with pytest.raises(StateError, match="merged"):
        weft.activate(model, "b")
    weft.detach(model, "a")
    weft.activate(model, "b")
    assert torch.allclose(output(model, x), base + changes["a"] + changes["b"])


def test_an_unknown_name_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="style")
    pretend_training(model)
    weft.merge(model)
    merged = Anatomy.of(model)
    with pytest.raises(StateError, match=r"no adapter named 'stile' is attached; did you mean 'style'\?"):
        weft.detach(model, "stile")
    merged.check_restored(model)


def test_nothing_attached_is_an_error() -> None:
    with pytest.raises(StateError, match=r"weft\.attach"):
        weft.detach(nn.Sequential(nn.Linear(5, 7)))


def test_a_class_changed_after_attaching_is_refused_and_leaves_every_layer_adapted() -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)), torch.randn(3, 5)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    pretend_training(model)
    expected = output(model, x)
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Identity())
    with pytest.raises(StateError, match="'1'"):
        weft.detach(model)
    assert identical(output(model, x), expected)
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    weft.detach(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_attaching_again_after_detaching_works_and_gives_the_same() -> None:
    for case in CASES:
        model, x = case.model().eval(), case.input()
        weft.attach(model, case.config)
        pretend_training(model)
        expected, adapter = output(model, x), weft.collect(model)
        weft.detach(model)
        weft.attach(model, adapter)
        assert identical(output(model, x), expected), case.name
