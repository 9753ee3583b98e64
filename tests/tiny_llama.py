"""A tiny random Llama with an adapter that has learned something, and token ids for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import weft


def llama(dtype: torch.dtype = torch.float64, *, layers: int = 2) -> LlamaForCausalLM:
    """Always the same base, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
            max_position_embeddings=32,
            use_cache=False,
        )
        return LlamaForCausalLM(config).to(dtype).train()


def adapted(config: weft.LoRAConfig, dtype: torch.dtype = torch.float64, *, layers: int = 2) -> LlamaForCausalLM:
    """That base with an adapter, its parameters moved from where they started; always the same."""
    model = llama(dtype, layers=layers)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        weft.attach(model, config)
        for parameter in weft.trainable_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def token_ids(rows: int = 4, length: int = 6) -> Tensor:
    """(rows, length), always the same."""
    return torch.randint(32, (rows, length), generator=torch.Generator().manual_seed(2))


def loss_of(model: nn.Module, ids: Tensor, seed: int = 0) -> Tensor:
    """The language-modelling loss, with dropout drawn from the seed."""
    torch.manual_seed(seed)
    logits = model(input_ids=ids).logits  # transformers would take the loss in float32
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Name -> the gradient of each parameter that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
