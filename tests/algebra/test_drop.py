import pytest
import torch

from weft.algebra.drop import Dropped
from weft.algebra.rows import Term


def term(m: int = 60, n: int = 41, place: int = 0) -> Term:
    """No entry is zero, so that what is zero afterwards was dropped."""
    return Term(place, 1.0, torch.arange(1.0, m + 1).unsqueeze(1), torch.ones(1, n))


def whole(dropped: Dropped) -> torch.Tensor:
    return dropped.read(slice(0, dropped.term.shape[0]))


@pytest.mark.parametrize("step", [1, 7, 32, 60])
def test_which_entries_stay_does_not_depend_on_how_they_are_read(step: int) -> None:
    dropped = Dropped(term(), 0.3, seed=5, path="a.b")
    pieces = [dropped.read(slice(i, min(i + step, 60))) for i in reversed(range(0, 60, step))]
    assert torch.equal(torch.cat(pieces[::-1]), whole(dropped))


def test_which_entries_stay_follows_from_seed_path_and_place() -> None:
    first = whole(Dropped(term(), 0.5, seed=0, path="layers.1.q"))
    assert torch.equal(first, whole(Dropped(term(), 0.5, seed=0, path="layers.1.q")))
    for other in (
        Dropped(term(), 0.5, seed=1, path="layers.1.q"),
        Dropped(term(), 0.5, seed=0, path="layers.11.q"),
        Dropped(term(place=1), 0.5, seed=0, path="layers.1.q"),
    ):
        same = ((first != 0) == (whole(other) != 0)).float().mean().item()
        assert same == pytest.approx(0.5, abs=0.05)  # as two independent halves of 2460 entries do


def test_which_entries_stay_is_the_same_for_all_time() -> None:
    """Files made with a seed can be made again: this row is a promise."""
    kept = (whole(Dropped(term(1, 24), 0.5, seed=0, path="layers.0.q_proj")) != 0).int().flatten().tolist()
    assert "".join(map(str, kept)) == "110111001110011110010100"


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_stays_is_rescaled(density: float) -> None:
    T = Term(0, 1.0, torch.full((400, 1), 3.0), torch.ones(1, 501))
    found = whole(Dropped(T, density, seed=3, path="x"))
    count = found.numel()
    deviation = (density * (1 - density) / count) ** 0.5
    assert (found != 0).double().mean().item() == pytest.approx(density, abs=5 * deviation)
    torch.testing.assert_close(found[found != 0].unique(), torch.tensor([3.0 / density]))


def test_rows_and_columns_are_dropped_evenly() -> None:
    kept = (whole(Dropped(Term(0, 1.0, torch.ones(500, 1), torch.ones(1, 500)), 0.5, 0, "x")) != 0).double()
    for dim in (0, 1):
        assert kept.mean(dim=dim).std().item() == pytest.approx((0.25 / 500) ** 0.5, rel=0.2)
    # Neither does an entry tell anything of its neighbour: from one draw come two of them.
    centred = kept - 0.5
    assert abs((centred[:, 1:] * centred[:, :-1]).mean().item()) < 5 * 0.25 / 500
    assert abs((centred[1:] * centred[:-1]).mean().item()) < 5 * 0.25 / 500


def test_density_one_keeps_all() -> None:
    assert torch.equal(whole(Dropped(term(), 1.0, seed=0, path="x")), term().B @ term().A)
