"""A whole training step on Llamas of several sizes: the limit, weft, peft and full fine-tuning.

    python -m benchmarks.step           # python -m benchmarks.step quick: the two smallest sizes

A step is forward, backward and fused AdamW, on all linear layers, rank 8, float32, every token learned. The limit is
the frozen model's forward and the gradient of its embedded input: no LoRA work, no optimizer.
"""

import copy
import sys
from collections.abc import Callable
from itertools import product

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import weft
from benchmarks.harness import compare, record

RANK, DROPOUTS = 8, (0.0, 0.05)
# name -> width, inner width, layers, heads, vocabulary, rows, tokens in a row
SIZES = {
    "0.5M": (96, 256, 4, 4, 512, 8, 64),
    "5M": (256, 704, 5, 4, 4096, 8, 128),
    "23M": (384, 1024, 10, 6, 8192, 8, 128),
    "39M": (512, 1408, 10, 8, 8192, 8, 128),
}


def base(size: str) -> LlamaForCausalLM:
    """A random Llama of a size."""
    width, inner, layers, heads, vocabulary, _, _ = SIZES[size]
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
    )


def stepper(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    """A training step of what requires gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def limit(model: LlamaForCausalLM, ids: torch.Tensor) -> Callable[[], None]:
    """The frozen model's forward, and the gradient of its embedded input."""
    model.requires_grad_(False)
    x = model.get_input_embeddings()(ids).requires_grad_()

    def step() -> None:
        torch.autograd.grad(model(inputs_embeds=x, labels=ids, use_cache=False).loss, x)

    return step


def main(sizes: tuple[str, ...] = tuple(SIZES), rounds: int = 8) -> None:
    """Measures and records."""
    for size, dropout in product(sizes, DROPOUTS):
        whole = base(size)
        rows, length = SIZES[size][-2:]
        ids = torch.randint(0, whole.config.vocab_size, (rows, length))
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        theirs = peft.get_peft_model(copy.deepcopy(whole), settings).train()
        ours = weft.attach(copy.deepcopy(whole), weft.LoRAConfig(rank=RANK, dropout=dropout)).train()
        variants = {
            "limit": limit(copy.deepcopy(whole), ids),
            "weft": stepper(ours, ids),
            "peft": stepper(theirs, ids),
            "full fine-tuning": stepper(whole.train(), ids),
        }
        parameters = whole.num_parameters()
        record("step", compare(variants, rounds), size=size, parameters=parameters, rank=RANK, dropout=dropout)


if __name__ == "__main__":
    main(("0.5M", "5M")) if "quick" in sys.argv else main()
