"""Law 4: an adapter is attached whole or not at all, and only to the base that it was made for."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from harness import CASES, Anatomy, Case, adapted, identical, output, pretend_training
from torch import Tensor, nn

import weft
from weft import Adapter, LowRank
from weft.errors import BaseMismatchError, BindingError, ConfigError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_collected_adapter_gives_the_same_outputs_on_a_fresh_base(case: Case, dtype: torch.dtype) -> None:
    model, x = adapted(case, dtype).eval(), case.input(dtype)
    adapter = weft.collect(model)
    for trainable in (False, True):
        fresh = weft.attach(case.model(dtype).eval(), adapter, trainable=trainable)
        assert identical(output(fresh, x), output(model, x))
        again = weft.collect(fresh)
        assert again.factors.keys() == adapter.factors.keys()
        for path, factors in adapter.factors.items():
            assert identical(again.factors[path].A, factors.A)
            assert identical(again.factors[path].B, factors.B)
            assert again.factors[path].scaling == factors.scaling
        assert again.magnitudes.keys() == adapter.magnitudes.keys()
        assert all(identical(again.magnitudes[path], m) for path, m in adapter.magnitudes.items())
        assert again.tensors.keys() == adapter.tensors.keys()
        assert all(torch.equal(again.tensors[key], tensor) for key, tensor in adapter.tensors.items())
        assert again.layouts == adapter.layouts


def test_a_collected_adapter_is_a_copy_and_a_trainable_one_leaves_it_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    adapter = weft.collect(model)
    kept = adapter.factors["0"].A.clone()
    pretend_training(model)
    weft.detach(model)
    weft.attach(model, adapter, trainable=True)
    pretend_training(model)
    assert identical(adapter.factors["0"].A, kept)


def base() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7))
    return nn.Sequential(nn.Linear(5, 7), nn.Conv1d(4, 6, 3, groups=2), nn.Embedding(9, 5), nn.LayerNorm(7), head)


def whole_adapter() -> Adapter:
    """One with every sort of tensor: factors of three kinds, biases with and without factors, a whole module."""
    model = base()
    weft.attach(model, weft.LoRAConfig(rank=2, targets=("0", "1", "2"), bias="all", train_modules=("4",)))
    pretend_training(model)
    return weft.collect(model)


def without(entries: dict[str, object], *names: str) -> dict[str, object]:
    return {key: value for key, value in entries.items() if key not in names}


Change = Callable[[Adapter], Adapter]


def _factors(**changed: LowRank) -> Change:
    paths = {path.removeprefix("m"): value for path, value in changed.items()}
    layouts = {path: weft.Layout() for path in paths}
    return lambda a: replace(a, factors={**a.factors, **paths}, layouts={**layouts, **a.layouts})


def _tensors(**changed: Tensor) -> Change:
    return lambda a: replace(a, tensors={**a.tensors, **{k.removeprefix("m"): v for k, v in changed.items()}})


def _pair(out: int, width: int, rank: int = 2) -> LowRank:
    return LowRank(torch.ones(out, rank), torch.ones(rank, width))


PROBLEMS: dict[str, tuple[Change, str]] = {
    "A of another width": (
        _factors(m0=_pair(7, 6)),
        r"0: found B \(7, 2\) and A \(2, 6\).*expected B \(7, r\) and A \(r, 5\)",
    ),
    "B of another height": (_factors(m0=_pair(8, 5)), r"0: found B \(8, 2\).*expected B \(7, r\)"),
    "no such module": (_factors(m17=_pair(7, 5)), r"17: found B \(7, 2\).*there is no such module"),
    "no layer": (_factors(m3=_pair(7, 7)), r"3: found .*a LayerNorm is no layer that weft adapts"),
    "another layout": (
        lambda a: replace(a, layouts={**a.layouts, "1": weft.Layout("conv", (3,), 1)}),
        r"1: found .*groups=1.*expected.*groups=2",
    ),
    "bias of another shape": (_tensors(**{"m0.bias": torch.ones(8)}), r"0\.bias: found \(8\), expected \(7\)"),
    "bias where there is none": (_tensors(**{"m2.bias": torch.ones(5)}), r"2\.bias: found \(5\), expected nothing"),
    "further bias of another shape": (_tensors(**{"m3.bias": torch.ones(1)}), r"3\.bias: found \(1\), expected \(7\)"),
    "a tensor too many": (
        _tensors(**{"mnowhere.weight": torch.ones(2, 3)}),
        r"nowhere\.weight: found \(2, 3\), but nothing in the model takes it",
    ),
    "a tensor of a whole module missing": (
        lambda a: replace(a, tensors=without(a.tensors, "4.0.weight")),
        r"4\.0\.weight: found nothing, expected \(7, 7\)",
    ),
    "a buffer of a whole module missing": (
        lambda a: replace(a, tensors=without(a.tensors, "4.1.running_var")),
        r"4\.1\.running_var: found nothing, expected \(7\)",
    ),
    "a tensor of a whole module of another shape": (
        _tensors(**{"m4.0.weight": torch.ones(3, 7)}),
        r"4\.0\.weight: found \(3, 7\), expected \(7, 7\)",
    ),
    "a tensor too many in a whole module": (
        _tensors(**{"m4.5.weight": torch.ones(3)}),
        r"4\.5\.weight: found \(3\), but nothing in the model takes it",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_does_not_fit_is_named_and_the_model_is_untouched(problem: str) -> None:
    change, message = PROBLEMS[problem]
    model = base()
    before = Anatomy.of(model)
    with pytest.raises(BindingError, match=message):
        weft.attach(model, change(whole_adapter()))
    before.check_restored(model)
    assert weft.adapter_names(model) == ()


def test_all_problems_are_listed_in_one_error() -> None:
    adapter = whole_adapter()
    chosen = ["A of another width", "no such module", "further bias of another shape", "a tensor too many",
              "a tensor of a whole module missing"]  # fmt: skip
    for problem in chosen:
        adapter = PROBLEMS[problem][0](adapter)
    model = base()
    before = Anatomy.of(model)
    with pytest.raises(BindingError) as caught:
        weft.attach(model, adapter)
    assert str(caught.value).startswith("5 of the adapter's ")
    assert len(str(caught.value).splitlines()) == 6
    for problem in chosen:
        assert caught.match(PROBLEMS[problem][1])
    before.check_restored(model)


def test_factors_without_a_layout_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"factors and layouts name different modules, first '17'"):
        Adapter(weft.LoRAConfig(), {"17": _pair(7, 5)}, {})


def test_a_failure_beside_an_attached_adapter_leaves_that_one_alone() -> None:
    model, adapter = base(), whole_adapter()
    weft.attach(model, adapter, name="good")
    before = Anatomy.of(model)
    with pytest.raises(BindingError):
        weft.attach(model, PROBLEMS["a tensor too many"][0](adapter), name="bad")
    before.check_restored(model)
    assert weft.adapter_names(model) == ("good",)


def test_a_layer_that_cannot_be_adapted_is_named() -> None:
    adapter = whole_adapter()
    model = base()
    model[2] = nn.Embedding(9, 5, max_norm=1.0)
    with pytest.raises(BindingError, match=r"2: found .*max_norm"):
        weft.attach(model, adapter, any_base=True)


def test_another_base_is_refused_unless_asked_for() -> None:
    adapter, other = whole_adapter(), base()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.5
    before = Anatomy.of(other)
    with pytest.raises(BaseMismatchError, match=r"its weights differ in .* sampled tensors, first in '0\.bias'"):
        weft.attach(other, adapter)
    before.check_restored(other)
    weft.attach(other, adapter, any_base=True)


def test_other_names_and_shapes_are_told_apart() -> None:
    adapter = whole_adapter()
    with pytest.raises(BaseMismatchError, match="other names"):
        weft.attach(nn.Sequential(*base(), nn.Linear(2, 2)), adapter)
    wide = base()
    wide[0] = nn.Linear(5, 8)
    with pytest.raises(BaseMismatchError, match="other shapes"):
        weft.attach(wide, adapter)


def test_the_name_of_the_base_is_in_the_message() -> None:
    adapter = replace(whole_adapter(), provenance={"base": "some/model"})
    with pytest.raises(BaseMismatchError, match=r"another base \(some/model\)"):
        weft.attach(nn.Sequential(nn.Linear(5, 7)), adapter)


def big_base() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*[nn.Linear(32, 32) for _ in range(40)])


def test_the_same_base_in_another_dtype_matches_both_ways() -> None:
    names = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    prints = {dtype: weft.base_fingerprint(big_base().to(dtype)) for dtype in names}
    for mine in prints.values():
        for theirs in prints.values():
            assert mine.difference(theirs) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lightly_fine_tuned_copy_does_not_match(dtype: torch.dtype) -> None:
    tuned = big_base()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-4 if dtype == torch.float32 else 2e-3)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
    original = weft.base_fingerprint(big_base().to(dtype))
    assert original.difference(weft.base_fingerprint(tuned.to(dtype))) is not None


def test_a_fingerprint_survives_json_and_attaching() -> None:
    model = big_base()
    print_ = weft.base_fingerprint(model)
    assert type(print_).from_dict(print_.to_dict()) == print_
    weft.attach(model, weft.LoRAConfig(rank=2, train_modules=("3",)))
    assert weft.base_fingerprint(model) == print_
    adapter = weft.collect(model)
    assert adapter.base == print_.without(["3"])  # trained whole: what the base has there is not used
    with torch.no_grad():
        weft.detach(model)[3].bias.add_(1.0)
    weft.attach(model, adapter)
    with torch.no_grad():
        weft.detach(model)[2].bias.add_(1.0)
    with pytest.raises(BaseMismatchError):
        weft.attach(model, adapter)


def test_a_fingerprint_reads_little_and_is_the_same_for_a_copy() -> None:
    model = big_base()
    print_ = weft.base_fingerprint(model)
    assert len(print_.samples) <= 64
    assert all(len(entries) == 8 for entries in print_.samples.values())
    assert weft.base_fingerprint(copy.deepcopy(model)) == print_


def test_the_meta_device_matches_by_structure() -> None:
    adapter = whole_adapter()
    with torch.device("meta"):
        model = base()
    weft.attach(model, adapter)
    again = weft.collect(model)
    assert all(identical(again.factors[path].A, factors.A) for path, factors in adapter.factors.items())
    assert all(identical(again.tensors[key], tensor) for key, tensor in adapter.tensors.items())


def test_planning_on_the_meta_device_costs_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000))
    plan = weft.plan(model, weft.LoRAConfig(rank=8))
    assert plan.parameters == 8 * 200_000
    assert plan.modules[0].shape == (100_000, 100_000)
