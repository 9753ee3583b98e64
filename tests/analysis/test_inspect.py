"""The numbers of an adapter, against dense arithmetic."""

import dataclasses
import math

import pytest
import torch

import weft
from weft.analysis.inspect import inspect
from weft.errors import ConfigError

from .adapters import adapter_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_matrix(dtype: torch.dtype) -> None:
    value = weft.LowRank(torch.randn(12, 4, dtype=dtype), torch.randn(4, 9, dtype=dtype), 0.5)
    (numbers,) = inspect(adapter_of({"a.0.b": value})).modules
    S = torch.linalg.svdvals(0.5 * value.B.double() @ value.A.double())[:4]
    shares = S / S.sum()
    expected = {
        "norm": S.norm(),
        "spectral_norm": S[0],
        "stable_rank": (S.norm() / S[0]) ** 2,
        "effective_rank": torch.exp(-(shares * shares.log()).sum()),
    }
    for name, number in expected.items():
        assert getattr(numbers.spectrum, name) == pytest.approx(float(number), rel=1e-5), name
    assert (numbers.path, numbers.name, numbers.kind) == ("a.0.b", "a.*.b", "linear")
    assert (numbers.shape, numbers.rank, numbers.scaling) == ((12, 9), 4, 0.5)
    assert numbers.nbytes == 4 * (12 + 9) * dtype.itemsize


def test_an_untrained_adapter_is_zero() -> None:
    (numbers,) = inspect(adapter_of({"a": weft.LowRank(torch.zeros(5, 2), torch.randn(2, 4))})).modules
    values = dataclasses.asdict(numbers.spectrum)
    assert values.pop("singular_values") == (0, 0)
    assert set(values.values()) == {0}


def test_orthonormal_factors_use_every_dimension() -> None:
    Q = torch.linalg.qr(torch.randn(8, 3)).Q
    (numbers,) = inspect(adapter_of({"a": weft.LowRank(Q, Q.T.contiguous(), 2.0)})).modules
    spectrum = numbers.spectrum
    assert spectrum.norm == pytest.approx(2 * math.sqrt(3), rel=1e-5)
    assert spectrum.stable_rank == pytest.approx(3, rel=1e-5)
    assert spectrum.effective_rank == pytest.approx(3, rel=1e-5)
    assert spectrum.saturation == pytest.approx(1, rel=1e-5)
    assert (spectrum.numerical_rank, spectrum.rank_90, spectrum.rank_99) == (3, 3, 3)


def test_magnitudes_are_averaged_and_counted() -> None:
    value, m = weft.LowRank(torch.randn(3, 2), torch.randn(2, 4)), torch.tensor([1.0, 2.0, 6.0])
    adapter = adapter_of({"a": value, "b": value}, magnitudes={"a": m, "b": m})
    (first, second) = inspect(adapter).modules
    assert first.magnitude == second.magnitude == 3
    assert (first.nbytes, second.nbytes) == (4 * (6 + 8 + 3), 0)


def test_shared_factors_are_counted_once() -> None:
    value = weft.LowRank(torch.randn(6, 2), torch.randn(2, 6))
    adapter = adapter_of({"a.0": value, "a.1": value, "b": value}, tensors={"head.weight": torch.zeros(3, 2)})
    numbers = inspect(adapter)
    assert [m.nbytes for m in numbers.modules] == [96, 0, 0]
    assert numbers.tensors == {"head.weight": 24}
    assert numbers.nbytes == 96 + 24
    assert {name: len(group) for name, group in numbers.by_name().items()} == {"a.*": 2, "b": 1}


def test_modules_come_in_the_order_of_their_blocks() -> None:
    paths = [f"h.{i}.{kind}" for i in range(12) for kind in ("attn", "mlp")]
    adapter = adapter_of({path: weft.LowRank(torch.ones(2, 1), torch.ones(1, 2)) for path in sorted(paths)})
    assert [m.path for m in inspect(adapter).modules] == paths


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_named(value: float) -> None:
    B = torch.randn(3, 2)
    B[1, 1] = value
    good = weft.LowRank(torch.randn(3, 2), torch.randn(2, 4))
    with pytest.raises(ConfigError, match=r"1 of the adapter's 4 tensors hold NaN or infinity, first b \(B\)"):
        inspect(adapter_of({"a": good, "b": weft.LowRank(B, torch.randn(2, 4))}))


def test_companions_are_listed_with_their_size() -> None:
    adapter = dataclasses.replace(
        adapter_of({}),
        config=weft.LoRAConfig(targets=(), companions=(weft.Prefix(length=2),)),
        companions={"a.prefix.keys": torch.zeros(2, 3), "a.prefix.gate": torch.zeros(2)},
    )
    numbers = inspect(adapter)
    assert dict(numbers.companions) == {"a.prefix": 32}
    assert numbers.nbytes == adapter.nbytes == 32
    broken = dataclasses.replace(adapter, companions={"a.prefix.gate": torch.tensor([math.nan])})
    with pytest.raises(ConfigError, match=r"first a\.prefix\.gate"):
        inspect(broken)
