"""Law 3: merge, then unmerge, is bit-exact; a merged layer is a plain layer, equal to the unmerged one within a bound.

The bound. Let u be half the spacing of the dtype at 1 and M = |x| (|W| + |s| |B| |A|) + |b|, all entries by
absolute value. Unmerged, in the layer's dtype: A, B and x A^T are rounded (3 u of the branch), the two products,
their scaling and their sum are rounded (4 u); merged: W + s B A is rounded (u) and so is the product (u). That is at
most 9 u M. The sums themselves run in float32 (float64 for float64) over n terms in another order: 2 n eps M.

DoRA scales the part before the bias by c = m / n; let M be that sum with the rows of |W| + |s| |B| |A| times
1 + |c - 1|. Beside LoRA's own error, scaled with it, unmerged: c - 1, u - b and the result are rounded (3 u M); and n^2
has a part 2 s <B, W A^T> in which A and the product are rounded (2 u), so c is off by at most 2 u times the share
rho = |s| <|B|, |W| |A|^T> / n^2, which the exact n brings. That is at most (12 + 2 rho) u M, and the sums likewise.
"""

import copy

import pytest
import torch
from harness import (
    DORA_LAYERS,
    DTYPES,
    LAYERS,
    MERGEABLE,
    QUANTIZED,
    Anatomy,
    Case,
    adapted,
    bits,
    identical,
    output,
    pretend_training,
)
from torch import Tensor, nn

import weft
from weft.errors import MergeError, StateError

HALF_SPACING = {dtype: torch.finfo(dtype).eps / 2 for dtype in DTYPES}
UNDO = ("snapshot", "patch")
FEW = [case for case in MERGEABLE if case.name in ("linear", "gpt2_conv1d", "conv2d_reflect", "tied", "whole_head")]


def state(model: nn.Module) -> dict[str, Tensor]:
    return bits({**dict(model.named_parameters()), **dict(model.named_buffers())})


def check_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    now = state(model)
    assert now.keys() == expected.keys()
    for key, tensor in expected.items():
        assert identical(now[key], tensor), key


@pytest.mark.parametrize("undo", UNDO)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MERGEABLE, ids=lambda case: case.name)
def test_unmerging_restores_every_bit(case: Case, dtype: torch.dtype, undo: str) -> None:
    model, x = adapted(case, dtype).eval(), case.input(dtype)
    before, expected = state(model), output(model, x)
    weft.merge(model, undo=undo)  # type: ignore[arg-type]
    assert any(not identical(before[key], tensor) for key, tensor in state(model).items())
    weft.unmerge(model)
    check_state(model, before)
    assert identical(output(model, x), expected)


@pytest.mark.parametrize("undo", UNDO)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_a_hundred_cycles_restore_every_bit(case: Case, dtype: torch.dtype, undo: str) -> None:
    model = adapted(case, dtype)
    before = state(model)
    for _ in range(100):
        with weft.merged(model, undo=undo):  # type: ignore[arg-type]
            pass
    check_state(model, before)


def bound(case: Case, model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """9 u M + 2 n eps M, elementwise, with what DoRA adds to both; see the module."""
    layer = model[0]
    factors = layer.adapters["default"]
    absolute = copy.deepcopy(case.model(torch.float64))
    change = factors.scaling * factors.lora_B.double().abs() @ factors.lora_A.double().abs()
    W, rounded = layer.matrix(layer).detach().double(), 9.0
    weight = W.abs() + change
    if factors.magnitude is not None:
        along = 1 - layer.output_dim
        n = (W + factors.low_rank().dense(torch.float64)).norm(dim=along, keepdim=True)
        weight *= 1 + (factors.magnitude.double().reshape(n.shape) / n - 1).abs()
        rounded = 12 + 2 * float(((change.detach() * W.abs()).sum(along, keepdim=True) / n.square()).max())
    with torch.no_grad():
        absolute[0].weight.copy_(layer.as_weight(layer, weight))
        if getattr(layer, "bias", None) is not None:
            absolute[0].bias.copy_(layer.bias.double().abs())
        M = absolute(x.double().abs() if x.is_floating_point() else x)
    n = factors.lora_A.shape[1] + factors.lora_A.shape[0]
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return (rounded * HALF_SPACING[dtype] + 2 * n * sums * rounded / 9) * M


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYERS + DORA_LAYERS, ids=lambda case: case.name)
def test_the_merged_forward_equals_the_unmerged_one_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    model, x = adapted(case, dtype), case.input(dtype)
    limit, unmerged = bound(case, model, x, dtype), output(model, x)
    weft.merge(model)
    error = (output(model, x).double() - unmerged.double()).abs()
    # Below the smallest normal number float16 rounds by an absolute amount, not a relative one.
    assert (error <= limit + 8 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("case", MERGEABLE, ids=lambda case: case.name)
def test_the_merged_model_equals_the_unmerged_one(case: Case) -> None:
    model, x = adapted(case, torch.float64).eval(), case.input(torch.float64)
    unmerged = output(model, x)
    weft.merge(model)
    assert torch.allclose(output(model, x), unmerged, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MERGEABLE, ids=lambda case: case.name)
def test_a_merged_layer_runs_as_a_plain_one_that_holds_its_weight(case: Case, dtype: torch.dtype) -> None:
    model, x = adapted(case, dtype).eval(), case.input(dtype)
    weft.merge(model)
    plain = case.model(dtype).eval()
    plain.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if ".adapters." not in key})
    assert identical(output(model, x), output(plain, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weight_is_rounded_once(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(32, 32)).to(dtype)
    weft.attach(model, weft.LoRAConfig(rank=4, targets="0"))
    pretend_training(model)
    factors, W = model[0].adapters["default"], model[0].weight.detach().double()
    exact = W + factors.scaling * factors.lora_B.detach().double() @ factors.lora_A.detach().double()
    weft.merge(model)
    off = (model[0].weight.double() - exact).abs()
    # Half a unit in the last place, and the roundings of the float32 (float64) sum of five terms.
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    M = W.abs() + factors.scaling * factors.lora_B.detach().double().abs() @ factors.lora_A.detach().double().abs()
    assert (off <= HALF_SPACING[dtype] * exact.abs() * (1 + 1e-6) + 8 * wide * M).all()


@pytest.mark.parametrize("undo", UNDO)
@pytest.mark.parametrize("case", LAYERS + DORA_LAYERS, ids=lambda case: case.name)
def test_several_adapters_merge_with_a_scale_each(case: Case, undo: str) -> None:
    model, x = case.model(torch.float64), case.input(torch.float64)
    for seed, name in enumerate(("a", "b", "c")):
        weft.attach(model, case.config, name=name)
        pretend_training(model, seed)
    before, chosen = state(model), {"a": 0.5, "b": -2.0}
    with weft.active(model, chosen):
        expected = output(model, x)
    weft.activate(model, "c")
    report = weft.merge(model, chosen, undo=undo)  # type: ignore[arg-type]
    assert report.adapters == ("a", "b")
    assert torch.allclose(output(model, x), expected, rtol=1e-12, atol=1e-12)
    weft.unmerge(model)
    check_state(model, before)
    assert torch.allclose(output(model, x), expected, rtol=1e-12, atol=1e-12)


def test_pissa_merges_to_the_difference_from_its_start() -> None:
    model, x = nn.Sequential(nn.Linear(12, 10)).double(), torch.randn(3, 12, dtype=torch.float64)
    before = bits(dict(model.state_dict()))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0", init=weft.PiSSA()))
    report = weft.merge(model)
    assert report.tensors == 1
    assert torch.allclose(model[0].weight, before["0.weight"], rtol=0, atol=1e-14)
    weft.unmerge(model)
    pretend_training(model)
    expected = output(model, x)
    with weft.merged(model):
        assert torch.allclose(output(model, x), expected, rtol=1e-12, atol=1e-12)
    assert identical(model[0].weight, before["0.weight"])


# An update of 2% to 4% of the size of the weight, as training makes it: 0.5 to 5% of the entries are kept, each with
# its place (int32).
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_undo_log_is_measured(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False)).to(dtype)
    weft.attach(model, weft.LoRAConfig(rank=8, alpha=16, targets="0"))
    with torch.no_grad():
        model[0].adapters["default"].lora_B.normal_(std=0.002)
    whole = weft.merge(model, undo="snapshot")
    assert whole.undo_bytes == whole.weight_bytes == 256 * 256 * dtype.itemsize
    weft.unmerge(model)
    patch = weft.merge(model, undo="patch")
    entries = patch.undo_bytes / (dtype.itemsize + 4) / (256 * 256)
    assert 0.005 < entries < 0.05
    weft.unmerge(model)
    final = weft.merge(model, undo=None)
    assert final.undo_bytes == 0


def test_a_report_reads_as_a_sentence() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="style")
    assert str(weft.merge(model)).startswith("merged style into 1 tensors")


@pytest.mark.parametrize("undo", [*UNDO, None])
def test_an_overflow_halfway_changes_no_weight(undo: str | None) -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)).half(), torch.randn(3, 5).half()
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    pretend_training(model)
    with torch.no_grad():
        model[1].adapters["default"].lora_B.fill_(1e4)
    before = state(model)
    with pytest.raises(MergeError, match=r"1.*torch\.float16"):
        weft.merge(model, undo=undo)  # type: ignore[arg-type]
    check_state(model, before)
    weft.activate(model, None)  # not refused: nothing is merged
    with torch.no_grad():
        model[1].adapters["default"].lora_B.fill_(0.1)
    weft.activate(model, "default")
    expected = output(model, x)
    weft.merge(model)
    assert torch.allclose(output(model, x).float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_what_would_not_see_the_merge_is_refused_while_merged() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="a")
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="b")
    pretend_training(model)
    weft.merge(model, "a")
    for refused in (
        lambda: weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="c"),
        lambda: weft.activate(model, "b"),
        lambda: weft.merge(model, "b"),
    ):
        with pytest.raises(StateError, match=r"'a' is merged into the weights; call weft\.unmerge"):
            refused()
    weft.unmerge(model)
    weft.activate(model, "b")


def test_merging_needs_something_to_merge() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name="a")
    with pytest.raises(StateError, match="nothing is merged"):
        weft.unmerge(model)
    with weft.active(model, None), pytest.raises(StateError, match=r"no adapter is active.*there are: a"):
        weft.merge(model)
    with pytest.raises(StateError, match="no adapter named 'z'"):
        weft.merge(model, "z")


def test_the_block_form_restores_what_was_active_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    for name in ("a", "b"):
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0"), name=name)
        pretend_training(model)
    before, x = state(model), torch.randn(2, 5)
    expected = output(model, x)
    with pytest.raises(RuntimeError, match="mine"), weft.merged(model, "a"):
        raise RuntimeError("mine")
    check_state(model, before)
    assert identical(output(model, x), expected)


def test_tied_weights_are_merged_once() -> None:
    tied = next(case for case in MERGEABLE if case.name == "tied")
    model, x = adapted(tied, torch.float64), tied.input(torch.float64)
    expected = output(model, x)
    report = weft.merge(model)
    assert report.tensors == 1
    assert model[0].weight is model[1].weight
    assert torch.allclose(output(model, x), expected, rtol=1e-12, atol=1e-12)


def test_factors_that_differ_on_a_tied_weight_are_refused_by_name() -> None:
    tied = next(case for case in MERGEABLE if case.name == "tied")
    model = adapted(tied)
    adapter = weft.collect(model)
    weft.detach(model)
    only_embedding = weft.Adapter(adapter.config, {"0": adapter.factors["0"]}, {"0": adapter.layouts["0"]})
    weft.attach(model, only_embedding)
    before = state(model)
    with pytest.raises(MergeError, match=r"0: its weight is also that of '1'"):
        weft.merge(model)
    check_state(model, before)


def test_a_tied_adapter_that_is_loaded_trains_on_as_one() -> None:
    tied = next(case for case in MERGEABLE if case.name == "tied")
    adapter = weft.collect(adapted(tied))
    twice = {path: weft.LowRank(f.B.clone(), f.A.clone(), f.scaling) for path, f in adapter.factors.items()}
    model = weft.attach(tied.model(), weft.Adapter(adapter.config, twice, adapter.layouts), trainable=True)
    assert len(list(weft.trainable_parameters(model))) == 2
    pretend_training(model)
    assert weft.merge(model).tensors == 1


def test_a_whole_module_that_shares_its_weight_is_refused_by_name() -> None:
    embedding, head = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(5, 5), head)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="1", train_modules=("2",)))
    pretend_training(model)
    before = state(model)
    with pytest.raises(MergeError, match=r"2: its weight is also that of '0'"):
        weft.merge(model)
    check_state(model, before)


@pytest.mark.parametrize("name", ["weight_norm", "orthogonal"])
def test_parametrized_weights_work_unmerged_and_are_refused_by_name(name: str) -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)), torch.randn(3, 5)
    getattr(nn.utils.parametrizations, name)(model[1])
    before, expected = Anatomy.of(model), output(model, x)
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    assert identical(output(model, x), expected)
    pretend_training(model)
    trained = output(model, x)
    assert not torch.equal(trained, expected)
    with pytest.raises(MergeError, match=r"(?s)no weight was changed:\n  1: .*parametrization"):
        weft.merge(model)
    assert identical(output(model, x), trained)
    weft.detach(model)
    before.check_restored(model)


def merged_with_a_patch(layers: int) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A model merged so, and its tensors before: wide enough, and changed little enough, for a patch to pay."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(layers)])
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    with torch.no_grad():
        for layer in model:
            layer.adapters["default"].lora_B.normal_(std=0.002)
    before = state(model)
    report = weft.merge(model, undo="patch")
    assert 0 < report.undo_bytes < 0.1 * report.weight_bytes
    return model, before


def test_a_patch_refuses_a_weight_that_changed_and_restores_the_rest() -> None:
    model, before = merged_with_a_patch(layers=3)
    merged = model[1].weight.detach().clone()
    with torch.no_grad():
        model[1].weight += 1.0
    tampered = model[1].weight.detach().clone()
    with pytest.raises(MergeError, match=r"1: the patch would not restore"):
        weft.unmerge(model)
    assert identical(model[1].weight, tampered)
    with pytest.raises(StateError, match="merged"):  # it still is, there
        weft.activate(model, "default")
    with torch.no_grad():
        model[1].weight.copy_(merged)
    weft.unmerge(model)
    check_state(model, before)


def test_a_patch_notices_one_changed_bit() -> None:
    model, before = merged_with_a_patch(layers=1)
    merged = model[0].weight.detach().clone()
    noticed = 0
    for place in range(50):
        with torch.no_grad():
            entry = model[0].weight.view(-1)[place]
            entry.copy_(torch.nextafter(entry, entry.new_tensor(9.0)))
        try:
            weft.unmerge(model)
        except MergeError:
            noticed += 1
            with torch.no_grad():
                model[0].weight.copy_(merged)
        else:  # an entry that the patch holds itself, or whose difference the subtraction rounds away
            check_state(model, before)
            weft.merge(model, undo="patch")
    assert noticed > 25


def test_a_patch_refuses_factors_that_changed() -> None:
    model, _ = merged_with_a_patch(layers=1)
    pretend_training(model, seed=5)
    with pytest.raises(MergeError, match="0: the patch"):
        weft.unmerge(model)


def test_a_snapshot_restores_whatever_happened_to_the_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    pretend_training(model)
    before = state(model)
    weft.merge(model)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    weft.unmerge(model)
    check_state(model, before)


def test_a_weight_replaced_since_the_merge_is_named_and_not_taken_for_restored() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    pretend_training(model)
    before = state(model)
    weft.merge(model)
    merged = model[1].weight
    model[1].weight = nn.Parameter(merged.detach().clone())
    with pytest.raises(MergeError, match=r"1: a weight was replaced by another tensor"):
        weft.unmerge(model)
    model[1].weight = merged
    weft.unmerge(model)
    check_state(model, before)


def test_a_base_with_infinite_weights_of_its_own_still_merges() -> None:
    model = nn.Sequential(nn.Linear(5, 7))
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    pretend_training(model)
    before = state(model)
    for undo in UNDO:
        weft.merge(model, undo=undo)  # type: ignore[arg-type]
        weft.unmerge(model)
        check_state(model, before)


@pytest.mark.parametrize("case", QUANTIZED, ids=lambda case: case.name)
def test_quantised_weights_are_refused_by_name_and_nothing_is_merged(case: Case) -> None:
    model, x = adapted(case).eval(), case.input()
    before, expected = Anatomy.of(model), output(model, x)
    with pytest.raises(MergeError, match=r"no weight was changed:\n  \d: its weight is stored in .bit.*weft merge B"):
        weft.merge(model)
    before.check_restored(model)
    assert identical(output(model, x), expected)


def test_meta_weights_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
        weft.attach(model, weft.LoRAConfig(rank=2, targets="0", bias="all"))
    with pytest.raises(MergeError, match=r"(?s)0: .*not in memory.*1: .*not in memory"):
        weft.merge(model)


def test_merged_weights_are_the_same_objects_in_the_same_storage() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5).half().float())
    weft.attach(model, weft.LoRAConfig(rank=2, targets="all-linear"))
    pretend_training(model)
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    weft.merge(model)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    weft.unmerge(model)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
