"""Attaching, detaching, loading and switching against peft.

    python -m benchmarks.attach [quick]

Attaching is measured on the meta device, where nothing is computed: on the shape of a 7B Llama (224 linear layers), and
on a mixture of experts with 9,216. What matters for loading and switching is how the time grows with the number of
adapters that are loaded already.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

import weft
from benchmarks.harness import Case, Effort, Options, compare, main
from benchmarks.models import ALPHA, SIZES, linear_layers, llama, sharing_weights
from benchmarks.records import Figures, Setting

RANK, LOADED = 8, (1, 10, 50)
SECOND = "second adapter"


class Experts(nn.Module):
    """The linear layers of a mixture of experts: 3 each."""

    def __init__(self, layers: int, experts: int) -> None:
        super().__init__()
        projections = {"gate_proj": (2048, 768), "up_proj": (2048, 768), "down_proj": (768, 2048)}
        self.layers = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in projections.items()})
                for _ in range(experts)
            )
            for _ in range(layers)
        )


def llama_7b() -> nn.Module:
    """32 blocks of 7 linear layers."""
    return LlamaForCausalLM(llama(4096, 11008, 32, 32, 32000)())


SHAPES: Mapping[str, Callable[[], nn.Module]] = {
    "Llama 7B": llama_7b,
    "experts": partial(Experts, 48, 64),
    "tiny": partial(Experts, 1, 2),
}


def attaching(shape: str, peers: tuple[str, ...], seconds: float, rounds: tuple[int, int]) -> Figures:
    """Seconds to attach a first and a second adapter, and to take all off again."""
    with torch.device("meta"):
        model = SHAPES[shape]()
    config = weft.LoRAConfig(rank=RANK, alpha=ALPHA)
    targets = sorted({path.rpartition(".")[2] for path in linear_layers(model)})
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    theirs: list[peft.PeftModel] = []

    def forget() -> None:
        theirs.clear()

    variants: dict[str, Callable[[], object]] = {
        "weft": lambda: weft.attach(model, config),
        f"weft, {SECOND}": lambda: weft.attach(model, config, "second"),
        "weft, detach": lambda: weft.detach(model),
        "peft": lambda: theirs.append(peft.get_peft_model(sharing_weights(model), settings)),
        f"peft, {SECOND}": lambda: theirs[0].add_adapter("second", settings),
        "peft, detach": lambda: theirs[0].unload(),
    }
    chosen = {name: call for name, call in variants.items() if name.startswith("weft") or name in peers}
    return compare(chosen, seconds, prepare={"peft": forget}, rounds=rounds)


def loading(size: str, loaded: int, seconds: float) -> Figures:
    """Seconds to load one more adapter from its files, beside reading the file and copying its tensors."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        ours, theirs = _with_loaded(size, loaded, folder)
        file = folder / "adapter_model.safetensors"
        room = {name: torch.empty_like(tensor) for name, tensor in load_file(file).items()}

        def read_and_copy() -> None:
            for name, tensor in load_file(file).items():
                room[name].copy_(tensor)

        def take_off() -> None:
            if "new" in weft.adapter_names(ours):
                weft.detach(ours, "new")

        def delete() -> None:
            if "new" in theirs.peft_config:
                theirs.delete_adapter("new")

        return compare(
            {
                "limit": read_and_copy,
                "weft": lambda: weft.attach(ours, weft.load(folder), "new"),
                "peft": lambda: theirs.load_adapter(folder, "new"),
            },
            seconds,
            prepare={"weft": take_off, "peft": delete},
        )


def switching(size: str, loaded: int, seconds: float) -> Figures:
    """Seconds to make another adapter the active one (or, of one that is loaded, the same again)."""
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = _with_loaded(size, loaded, Path(temporary) / "adapter")
        other = f"a{min(1, loaded - 1)}"
        return compare(
            {"weft": lambda: weft.activate(ours, "a0"), "peft": lambda: theirs.set_adapter("a0")},
            seconds,
            prepare={"weft": lambda: weft.activate(ours, other), "peft": lambda: theirs.set_adapter(other)},
        )


def _with_loaded(size: str, loaded: int, folder: Path) -> tuple[nn.Module, peft.PeftModel]:
    """The model with this many adapters loaded by weft, and by peft; the adapter is saved in the folder."""
    base = SIZES[size].model().requires_grad_(False)
    weft.collect(weft.attach(sharing_weights(base), weft.LoRAConfig(rank=RANK, alpha=ALPHA))).save(folder)
    ours = sharing_weights(base)
    theirs = peft.PeftModel.from_pretrained(sharing_weights(base), folder, adapter_name="a0")
    weft.attach(ours, weft.load(folder), "a0")
    for i in range(1, loaded):
        weft.attach(ours, weft.load(folder), f"a{i}")
        theirs.load_adapter(folder, f"a{i}")
    return ours, theirs


def cases(options: Options) -> Iterator[Case]:
    """Attaching to each shape; loading and switching with 1, 10 and 50 adapters loaded."""
    full = options.effort == "full"
    everything = ("peft", f"peft, {SECOND}", "peft, detach")
    few = (3, 3) if full else (1, 1)  # peft takes a minute a round on the experts
    shapes: dict[Effort, list[tuple[str, tuple[str, ...], tuple[int, int]]]] = {
        "full": [("Llama 7B", everything, (5, 20)), ("experts", everything[:2], few)],
        "quick": [("Llama 7B", everything, (3, 3)), ("experts", (), few)],
        "tiny": [("tiny", everything, few)],
    }
    for shape, peers, rounds in shapes[options.effort]:
        setting: Setting = {"shape": shape, "rank": RANK}
        yield Case("attach", setting, partial(attaching, shape, peers, options.seconds, rounds))
    size = "0.5M" if options.effort == "tiny" else "39M"
    for loaded in {"full": LOADED, "quick": LOADED[1:2], "tiny": LOADED[:1]}[options.effort]:
        setting: Setting = {"model": size, "rank": RANK, "loaded": loaded}
        yield Case("load", setting, partial(loading, size, loaded, options.seconds))
        yield Case("switch", setting, partial(switching, size, loaded, options.seconds / 4))


if __name__ == "__main__":
    main(cases)
