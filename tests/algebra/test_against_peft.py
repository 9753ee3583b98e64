"""Where the meaning is the same, peft's methods that form the dense delta give the same matrix at full rank."""

from collections.abc import Sequence

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from weft import LowRank
from weft.algebra import Dare, DareTies, MagnitudePrune, Method, Ties
from weft.linalg import Limit

DENSITY = 0.25  # of 12 x 16 entries: 48


def both(
    method: Method, kind: str, weights: Sequence[float], theirs: Sequence[float]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The result of weft's method, that of peft's `kind` with `theirs` as weights, and the dense changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12, bias=False))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config, "first")
    tuned.add_adapter("second", config)
    layer = tuned.base_model.model[0]
    names = ["first", "second"]
    terms = [LowRank(layer.lora_B[n].weight.detach(), layer.lora_A[n].weight.detach(), 2.0) for n in names]
    tuned.add_weighted_adapter(names, list(theirs), "merged", combination_type=kind, svd_rank=12, density=DENSITY)
    ours = method.merge("0", terms, weights, Limit(rank=12)).value.dense()
    return ours, layer.get_delta_weight("merged").detach(), [term.dense() for term in terms]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (1.0, -0.5)])
def test_magnitude_prune(weights: tuple[float, float]) -> None:
    ours, theirs, _ = both(MagnitudePrune(DENSITY), "magnitude_prune_svd", weights, weights)
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_ties_with_equal_weights() -> None:
    ours, theirs, _ = both(Ties(DENSITY), "ties_svd", (0.5, 0.5), (1.0, 1.0))
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_ties_with_unequal_weights_differs_as_documented() -> None:
    """peft: an unweighted vote, and the weighted sum over the number that agree."""
    ours, theirs, changes = both(Ties(DENSITY), "ties_svd", (0.8, 0.4), (0.8, 0.4))
    kept = [torch.where(D.abs() >= D.abs().flatten().sort(descending=True).values[47], D, 0.0) for D in changes]
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [(P.sign() == sign).float() for P in kept]
    expected = (0.8 * kept[0] * agree[0] + 0.4 * kept[1] * agree[1]) / (agree[0] + agree[1]).clamp(min=1)
    assert_close(theirs, expected, rtol=0, atol=1e-5)
    assert float((ours - theirs).norm() / theirs.norm()) > 0.1


@pytest.mark.parametrize(
    ("method", "kind", "weights"),
    [(Dare(DENSITY, seed=1), "dare_linear_svd", (0.7, 0.3)), (DareTies(DENSITY, seed=1), "dare_ties_svd", (1.0, 1.0))],
)
def test_dare_has_the_same_values_though_other_entries_are_dropped(
    method: Method, kind: str, weights: tuple[float, float]
) -> None:
    ours, theirs, changes = both(method, kind, weights, weights)
    first, second = (w * D / DENSITY for w, D in zip(weights, changes, strict=True))
    together = first + second
    if kind == "dare_ties_svd":
        heavier = torch.where(first.abs() > second.abs(), first, second)
        together = torch.where(first * second > 0, together / 2, heavier)
    possible = torch.stack([torch.zeros_like(first), first, second, together])
    for merged in (ours, theirs):
        distance, which = (merged - possible).abs().min(dim=0)
        assert float(distance.max()) < 1e-5
        assert which.unique().numel() == 4, "all four cases occur"
