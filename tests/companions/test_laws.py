"""The laws, over each companion on several tiny real models."""

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness import Anatomy, identical, pretend_training

import weft
from companions.cases import CASES, Case
from weft import Bottleneck, LoRAConfig, Prefix, Prompt
from weft.digest import digest
from weft.errors import BindingError, ConfigError, MergeError, StateError

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases
def test_attaching_changes_nothing_and_detaching_restores_everything(case: Case, dtype: torch.dtype) -> None:
    model = case.model(dtype)
    before, base = Anatomy.of(model), case.answer(model)
    for config in (case.alone(), case.with_factors()):
        weft.attach(model, config)
        assert torch.equal(case.answer(model), base)
        before.check_tensors_untouched(model)
        pretend_training(model)
        trained = case.answer(model, prompted=True)
        assert not torch.equal(trained[..., -1, :] if trained.ndim == 3 else trained, base[..., -1, :])
        with weft.active(model, None):
            assert identical(case.answer(model), base)
        weft.detach(model)
        before.check_restored(model)
        assert identical(case.answer(model), base)


@cases
def test_what_is_collected_saved_and_loaded_is_what_was_trained(case: Case, tmp_path: Path) -> None:
    model = weft.attach(case.model(), case.with_factors())
    pretend_training(model)
    adapter = weft.collect(model)
    assert adapter.num_parameters == sum(p.numel() for p in weft.trainable_parameters(model))
    loaded = weft.load(adapter.save(tmp_path / "adapter"))
    assert (loaded.config, digest(loaded)) == (adapter.config, digest(adapter))
    for trainable in (False, True):
        fresh = weft.attach(case.model(), loaded, trainable=trainable)
        assert identical(case.answer(fresh, prompted=True), case.answer(model, prompted=True))
        assert digest(weft.collect(fresh)) == digest(adapter)
    assert digest(replace(adapter, companions={key: 2 * t for key, t in adapter.companions.items()})) != digest(adapter)


@cases
def test_copies_and_pickles_have_companions_of_their_own(case: Case) -> None:
    model = case.model()
    base = case.answer(model)
    weft.attach(model, case.with_factors())
    pretend_training(model)
    trained = case.answer(model, prompted=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert identical(case.answer(twin, prompted=True), trained)
        pretend_training(twin, seed=3)
        assert identical(case.answer(model, prompted=True), trained)
        weft.detach(twin)
        assert identical(case.answer(twin), base)


@cases
def test_planned_is_what_is_attached(case: Case) -> None:
    model = case.model()
    plan = weft.plan(model, case.with_factors())
    weft.attach(model, case.with_factors())
    assert plan.parameters == sum(p.numel() for p in weft.trainable_parameters(model))
    held = {key.rpartition(".")[0] for key in weft.collect(model).companions}
    assert held == {f"{c.beside}.{c.name}" for c in plan.companions}
    assert len(plan.companions) == len(held)
    assert case.companion.name in str(plan)
    assert sum(entry["parameters"] for entry in plan.to_dict()["companions"]) == sum(
        t.numel() for t in weft.collect(model).companions.values()
    )


@cases
def test_every_trained_tensor_gets_a_gradient_and_the_base_none(case: Case) -> None:
    model = weft.attach(case.model(), case.alone()).train()
    pretend_training(model)
    batch = case.family.batch()
    if isinstance(case.companion, Prompt):
        batch |= case.laid(model, batch)
    model(**batch).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in weft.trainable_parameters(model))
    trained = {id(p) for p in weft.trainable_parameters(model)}
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)


@pytest.mark.parametrize("case", [case for case in CASES if case.companion.name != "prompt"], ids=lambda c: c.name)
def test_several_adapters_add_up_in_any_order_of_coming_and_going(case: Case) -> None:
    last = "last"  # the first change alone is a sum of outputs: further blocks see changed inputs
    model = case.model(torch.float64)
    site = next(iter(weft.plan(model, case.alone()).companions)).beside
    layer = model.get_submodule(site)
    seen: list[torch.Tensor] = []

    def output(names: object) -> torch.Tensor:
        seen.clear()
        handle = layer.register_forward_hook(lambda module, x, y: seen.append(y.detach().clone()))
        with weft.active(model, names):  # type: ignore[arg-type]
            case.answer(model)
        handle.remove()
        return seen[0]

    weft.attach(model, case.alone(), "a")
    pretend_training(model)
    weft.attach(model, LoRAConfig(rank=2, targets="all-linear"), "factors")
    weft.attach(model, case.alone(), last)
    pretend_training(model, seed=3)
    base, a, b = output(None), output("a"), output(last)
    assert torch.allclose(output(["a", last]), base + (a - base) + (b - base), rtol=1e-9, atol=1e-12)
    assert torch.allclose(output({"a": 0.5, last: -2.0}), base + 0.5 * (a - base) - 2 * (b - base), rtol=1e-9)
    with weft.active(model, last):
        answer = case.answer(model)
    weft.detach(model, "a")
    weft.detach(model, "factors")
    weft.activate(model, last)
    assert identical(case.answer(model), answer)


@cases
def test_a_model_without_memory_gets_its_companions_with_it(case: Case) -> None:
    with torch.device("meta"):
        model = case.family.model(case.family.config())
    plan = weft.plan(model, case.alone())
    assert plan.parameters == weft.plan(case.model(), case.alone()).parameters
    weft.attach(model, case.alone())
    if isinstance(case.companion, Prompt):
        with pytest.raises(StateError, match="must come from the base's"):
            model.to_empty(device="cpu")
        return
    model.to_empty(device="cpu")
    model.load_state_dict(case.model().state_dict(), strict=False)
    assert all(torch.isfinite(t).all() for t in weft.collect(model).companions.values())
    assert any(t.any() for t in weft.collect(model).companions.values())


@cases
def test_merging_and_summing_are_refused(case: Case) -> None:
    model = weft.attach(case.model(), case.with_factors())
    pretend_training(model)
    trained, adapter = case.answer(model, prompted=True), weft.collect(model)
    with pytest.raises(MergeError, match=rf"{case.companion.name}: a companion changes outputs"):
        weft.merge(model)
    assert identical(case.answer(model, prompted=True), trained)
    for combination in (lambda: adapter + adapter, lambda: weft.combine([adapter, adapter]), lambda: 2 * adapter):
        with pytest.raises(ConfigError, match=rf"adapter 1 has a companion \({case.companion.name}\)"):
            combination()
    assert (2 * replace(adapter, companions={})).config.companions == ()
    smaller = weft.resize(adapter, rank=1)
    assert smaller.companions.keys() == adapter.companions.keys()
    weft.detach(model)
    weft.attach(model, smaller)


@cases
def test_loading_is_all_or_nothing(case: Case) -> None:
    model = weft.attach(case.model(), case.alone())
    adapter = weft.collect(model)
    weft.detach(model)
    before = Anatomy.of(model)
    first = next(iter(adapter.companions))
    cut = {**adapter.companions, first: adapter.companions[first][..., :-1]}
    with pytest.raises(BindingError, match=rf"{first}: found .*, expected"):
        weft.attach(model, replace(adapter, companions=cut))
    lacking = {key: tensor for key, tensor in adapter.companions.items() if key != first}
    strays = {f"nowhere.{case.companion.name}.{first.rpartition('.')[2]}": adapter.companions[first]}
    with pytest.raises(BindingError, match=r"nowhere\.\w+: found 1 tensors, but there is no place for them"):
        weft.attach(model, replace(adapter, companions={**lacking, **strays}))
    before.check_restored(model)
    with pytest.raises(ConfigError, match="is of none that the configuration names"):
        replace(adapter, config=LoRAConfig())


def test_all_companions_with_factors_and_biases_on_one_model(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "bert_prompt")
    config = LoRAConfig(
        rank=2,
        targets="all-layers",
        bias="all",
        train_modules=("classifier",),
        companions=(Prefix(length=3), Bottleneck(width=2, activation="relu"), Prompt(length=3)),
    )
    model = case.model()
    before = Anatomy.of(model)
    weft.attach(model, config)
    pretend_training(model)
    trained = case.answer(model, prompted=True)
    loaded = weft.load(weft.collect(model).save(tmp_path / "adapter"))
    weft.detach(model)
    before.check_restored(model)
    assert identical(case.answer(weft.attach(model, loaded), prompted=True), trained)


def test_layers_and_exclude_hold_for_companions() -> None:
    case = CASES[0]
    model = case.model()
    plan = weft.plan(model, replace(case.alone(), layers=(1,)))
    assert [c.beside for c in plan.companions] == ["model.layers.1.self_attn.o_proj"]
    plan = weft.plan(model, LoRAConfig(targets=(), exclude=("o_proj",), companions=(Bottleneck(),)))
    assert {c.beside.rpartition(".")[2] for c in plan.companions} == {"down_proj"}
