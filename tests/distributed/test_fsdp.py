"""FSDP2 over two real processes: a model that is attached, then sharded, is the model that was attached."""

from pathlib import Path

import pytest
import torch
from tiny_llama import adapted, gradients, llama, loss_of, token_ids
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from two_processes import in_two_processes

import weft
from weft.errors import StateError

EXACT = {"rtol": 1e-10, "atol": 1e-12}
# Embedding and output head are in the root's own group, whose parameters stay whole after a forward pass.
TARGETS = ("all-linear", "embed_tokens", "lm_head")
CONFIGS = [
    weft.LoRAConfig(rank=3, dropout=0.1),
    weft.LoRAConfig(rank=3, targets=TARGETS, init=weft.PiSSA()),
    weft.LoRAConfig(rank=3, targets=TARGETS, variant=weft.DoRA()),
]


def shard(model: nn.Module, policy: MixedPrecisionPolicy | None = None) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_adapter(found: weft.Adapter, expected: weft.Adapter) -> None:
    assert found.factors.keys() == expected.factors.keys()
    for path, value in expected.factors.items():
        for mine, theirs in ((found.factors[path].B, value.B), (found.factors[path].A, value.A)):
            assert type(mine) is Tensor
            torch.testing.assert_close(mine, theirs, **EXACT)
    assert_equal(dict(found.magnitudes), dict(expected.magnitudes))


def _train(config: weft.LoRAConfig) -> None:
    rank = distributed.get_rank()
    model, alone = adapted(config), adapted(config)
    shard(model)
    optimizers = [torch.optim.AdamW(weft.trainable_parameters(m), lr=1e-2) for m in (model, alone)]
    ids = token_ids(8)
    for step in range(2):
        batch = ids[4 * step : 4 * step + 4]
        loss_of(model, batch[rank::2], seed=rank).backward()
        for r in range(2):
            (loss_of(alone, batch[r::2], seed=r) / 2).backward()
        frozen = [p for p in alone.parameters() if not p.requires_grad]
        assert len(gradients(model)) == len(list(alone.parameters())) - len(frozen)
        assert_equal(whole(gradients(model)), gradients(alone))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    _act(model, alone, ids)


@torch.no_grad()
def _act(model: nn.Module, alone: nn.Module, ids: Tensor) -> None:
    """Everything that does not train, on a model that a forward pass has left partly whole."""
    model.eval()
    alone.eval()

    def assert_same_outputs() -> None:
        torch.testing.assert_close(model(input_ids=ids).logits, alone(input_ids=ids).logits, **EXACT)

    assert_same_outputs()
    assert_same_adapter(weft.collect(model), weft.collect(alone))
    assert_same_outputs()
    assert all(isinstance(parameter, DTensor) for parameter in weft.trainable_parameters(model))
    with weft.active(model, None), weft.active(alone, None):
        assert_same_outputs()
    with weft.active(model, {"default": 0.5}), weft.active(alone, {"default": 0.5}):
        assert_same_outputs()
    with pytest.raises(StateError, match=r"cannot merge into a model that is sharded.*weft.collect"):
        weft.merge(model)
    with pytest.raises(StateError, match=r"cannot detach from a model that is sharded.*activate"):
        weft.detach(model)
    with pytest.raises(StateError, match="cannot take the fingerprint of a model that is sharded"):
        weft.base_fingerprint(model)
    with pytest.raises(StateError, match=r"sharded over processes.*Attach first, then shard"):
        weft.attach(model, CONFIGS[0], "second")
    assert_same_outputs()
    weft.attach(llama(), weft.collect(model))  # what was collected fits a base that is whole


def _all_train() -> None:
    for config in CONFIGS:
        _train(config)


def test_a_sharded_model_trains_as_the_whole_one(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _all_train)


def _mixed(base: torch.dtype, policy: MixedPrecisionPolicy | None) -> None:
    """FSDP2's own casts to bfloat16, or, without a policy, a base in bfloat16 with factors in float32."""
    rank, config, ids = distributed.get_rank(), weft.LoRAConfig(rank=2), token_ids()
    model, alone = adapted(config, base), adapted(config, base)
    if policy is not None:
        for parameter in alone.parameters():  # but not the buffers, which FSDP2 leaves as they are
            parameter.data = parameter.bfloat16()
    shard(model, policy)
    loss_of(model, ids[rank::2]).backward()
    halves = []
    for r in range(2):
        alone.zero_grad()
        loss_of(alone, ids[r::2]).backward()
        halves.append(gradients(alone))
    found = whole(gradients(model))
    assert found.keys() == halves[0].keys()
    for name, gradient in found.items():
        expected = (halves[0][name].float() + halves[1][name].float()) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)  # float32: the factors' own dtype
    model(input_ids=ids)
    assert all(value.B.dtype == torch.float32 for value in weft.collect(model).factors.values())


def _all_mixed() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for base, chosen in ((torch.float32, policy), (torch.bfloat16, policy), (torch.bfloat16, None)):
        _mixed(base, chosen)


def test_mixed_precision(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _all_mixed)


def _attach_too_late() -> None:
    model = llama()
    shard(model)
    assert isinstance(model, FSDPModule)
    with pytest.raises(StateError, match=r"sharded over processes.*Attach first, then shard"):
        weft.attach(model, CONFIGS[0])
    assert weft.adapter_names(model) == ()
    model(input_ids=token_ids())


def test_attaching_to_a_sharded_model_is_refused(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _attach_too_late)
