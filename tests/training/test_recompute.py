"""Computing activations again in the backward pass: the same gradients, and less kept than the frozen model keeps."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

import weft


@pytest.fixture
def deep() -> LlamaForCausalLM:
    """Wide enough that the layers take their fast path."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 64, (4, 80))


def attached(model: LlamaForCausalLM, dropout: float) -> LlamaForCausalLM:
    weft.attach(model, weft.LoRAConfig(rank=4, dropout=dropout))
    for parameter in weft.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def gradients(model: LlamaForCausalLM, ids: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    return list(torch.autograd.grad(loss, list(weft.trainable_parameters(model))))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_to_the_last_bit(deep: LlamaForCausalLM, ids: Tensor, dropout: float) -> None:
    model = attached(deep, dropout)
    expected = gradients(model, ids)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients(model, ids), strict=True))
    torch.manual_seed(5)
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()  # which reentrant checkpointing needs
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = [parameter.grad for parameter in weft.trainable_parameters(model)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))  # type: ignore[arg-type]


def saved_bytes(model: LlamaForCausalLM, loss: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the model's own."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    tensors: list[Tensor] = []  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
        return tensor

    hooks: AbstractContextManager[None] = saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks:
        loss()
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_less_is_kept_than_the_frozen_model_keeps(deep: LlamaForCausalLM, ids: Tensor, dropout: float) -> None:
    deep.requires_grad_(False)
    x = deep.get_input_embeddings()(ids).requires_grad_()
    limit = saved_bytes(deep, lambda: deep(inputs_embeds=x, labels=ids, use_cache=False).loss)
    model = attached(deep, dropout)
    assert saved_bytes(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss) > 1.05 * limit
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert saved_bytes(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss) < 0.5 * limit
