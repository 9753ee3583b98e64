"""Attaching, loading and switching against peft, on a Llama-shaped model of 224 linear layers.

    python -m benchmarks.attach

What matters is how the time grows with the number of adapters that are loaded already.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import weft
from benchmarks.harness import compare, record

RANK, LOADED = 8, (1, 10, 50)


def base() -> LlamaForCausalLM:
    """32 blocks of 7 linear layers, narrow, so that what is measured is the work per module."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=32, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def config() -> peft.LoraConfig:
    """peft's configuration of the same adapter."""
    return peft.LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def with_weft(adapters: int, folder: Path) -> LlamaForCausalLM:
    """The model with `adapters` loaded by weft."""
    model = base()
    for i in range(adapters):
        weft.attach(model, weft.load(folder), f"a{i}")
    return model


def with_peft(adapters: int, folder: Path) -> peft.PeftModel:
    """The model with `adapters` loaded by peft."""
    model = peft.PeftModel.from_pretrained(base(), folder, adapter_name="a0")
    for i in range(1, adapters):
        model.load_adapter(folder, f"a{i}")
    return model


def main(rounds: int = 5) -> None:
    """Measures and records."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        model = weft.attach(base(), weft.LoRAConfig(rank=RANK))
        weft.collect(model).save(folder)

        bases = iter([base() for _ in range(2 * (rounds + 2))])
        found = compare(
            {
                "peft": lambda: peft.get_peft_model(next(bases), config()),
                "weft": lambda: weft.attach(next(bases), weft.LoRAConfig(rank=RANK)),
            },
            rounds,
        )
        record("attach", found, modules=224, rank=RANK)

        for loaded in LOADED:
            ours, theirs = with_weft(loaded, folder), with_peft(loaded, folder)
            names = iter(f"new{i}" for i in range(10**6))
            found = compare(
                {
                    "peft": _loading(lambda name, m=theirs: m.load_adapter(folder, name), names),
                    "weft": _loading(lambda name, m=ours: weft.attach(m, weft.load(folder), name), names),
                },
                rounds,
            )
            record("load", found, loaded=loaded, modules=224, rank=RANK)
            found = compare(
                {"peft": lambda m=theirs: m.set_adapter("a0"), "weft": lambda m=ours: weft.activate(m, "a0")}, rounds
            )
            record("switch", found, loaded=loaded, modules=224, rank=RANK)


def _loading(load: Callable[[str], object], names: Iterator[str]) -> Callable[[], object]:
    return lambda: load(next(names))


if __name__ == "__main__":
    main()
