"""Combining at a limited rank against peft, and what an adapter of a whole model costs to work with.

    python -m benchmarks.algebra [quick]

peft forms the dense sum of a module's changes and its full SVD, so that the two are compared on a part of a model only;
what weft takes for all of it is measured apart, each operation in a fresh process, with the peak of its memory.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import peft
import torch
from torch import nn

import weft
from benchmarks.harness import Case, Options, PeakMemory, compare, in_fresh_process, main
from benchmarks.records import Figures
from weft import Adapter, Layout, LoRAConfig, LowRank
from weft.analysis.inspect import inspect
from weft.digest import digest

RANK, WEIGHTS = 16, (0.7, 0.3)

Shapes = Mapping[str, tuple[int, int]]


def _decoder(width: int, inner: int) -> Shapes:
    square = {f"self_attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    wide = {f"mlp.{name}": (inner, width) for name in ("gate_proj", "up_proj")}
    return {**square, **wide, "mlp.down_proj": (width, inner)}


MODELS: Mapping[str, tuple[int, Shapes]] = {
    "125M": (12, _decoder(768, 2048)),
    "Llama 7B": (32, _decoder(4096, 11008)),
    "tiny": (2, _decoder(32, 48)),
}
"""Blocks, and the linear layers of one."""


def adapter(model: str, seed: int) -> Adapter:
    """Random factors for every linear layer of a model."""
    torch.manual_seed(seed)
    blocks, shapes = MODELS[model]
    factors = {
        f"model.layers.{block}.{name}": LowRank(torch.randn(out, RANK), torch.randn(RANK, width), 2.0)
        for block in range(blocks)
        for name, (out, width) in shapes.items()
    }
    return Adapter(LoRAConfig(rank=RANK), factors, dict.fromkeys(factors, Layout()))


def combining(shapes: Shapes, seconds: float) -> Figures:
    """Seconds a module to combine two adapters at the rank of each, and the relative error of what came out."""
    with torch.device("meta"):
        base = nn.ModuleDict({name: nn.Linear(width, out, bias=False) for name, (out, width) in shapes.items()})
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(shapes), init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.PeftModel(base.to_empty(device="cpu"), config, "first")
    theirs.add_adapter("second", config)
    layers = dict(theirs.base_model.model.items())
    ours = []
    for name in ("first", "second"):
        factors = {}
        for path, layer in layers.items():
            A, B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
            factors[path] = LowRank(B.normal_(), A.normal_(), 2.0)
        ours.append(Adapter(LoRAConfig(rank=RANK), factors, dict.fromkeys(factors, Layout())))
    found: dict[str, Adapter] = {}

    def weft_svd() -> None:
        found["weft"] = weft.combine(ours, "svd", WEIGHTS)

    def peft_svd(name: str, full_matrices: bool) -> None:
        theirs.add_weighted_adapter(
            ["first", "second"], list(WEIGHTS), "both", "svd", svd_rank=RANK, svd_full_matrices=full_matrices
        )
        factors = {
            path: LowRank(
                *(f["both"].weight.detach().clone() for f in (layer.lora_B, layer.lora_A)), layer.scaling["both"]
            )
            for path, layer in layers.items()
        }
        found[name] = Adapter(LoRAConfig(rank=RANK), factors, dict.fromkeys(factors, Layout()))
        theirs.delete_adapter("both")

    figures = compare(
        {
            "weft": weft_svd,
            "peft": partial(peft_svd, "peft", True),
            "peft, thin SVD": partial(peft_svd, "peft, thin SVD", False),
        },
        seconds,
        rounds=(2, 20),
    )
    exact = weft.weighted_sum(ours, WEIGHTS)
    for name, value in found.items():
        figures[name]["relative_error"] = [(exact - value).norm() / exact.norm()] * len(figures[name]["seconds"])
        figures[name]["seconds"] = [each / len(shapes) for each in figures[name]["seconds"]]
    return figures


OPERATIONS: Mapping[str, Callable[[Adapter, Adapter], object]] = {
    "combine, svd": lambda a, b: weft.combine([a, b], "svd", WEIGHTS),
    "combine, linear": lambda a, b: weft.combine([a, b], "linear", WEIGHTS),
    "a + b": lambda a, b: a + b,
    "resize to rank 8": lambda a, b: weft.resize(a, rank=8),
    "inspect": lambda a, b: inspect(a),
    "inner product": weft.inner,
    "digest": lambda a, b: digest(a),
}


def operation(model: str, name: str) -> tuple[float, float]:
    """Seconds, and the peak of memory over the size of the two adapters that went in."""
    a, b = adapter(model, 0), adapter(model, 1)
    warm = adapter("tiny", 0)
    OPERATIONS[name](warm, warm)  # what is loaded at the first call of anything is not the operation's
    memory, start = PeakMemory(), time.perf_counter()
    result = OPERATIONS[name](a, b)
    seconds, peak = time.perf_counter() - start, memory.over_start()
    del result
    return seconds, peak / (a.nbytes + b.nbytes)


def whole(model: str, rounds: int) -> Figures:
    """What each operation takes on all modules of a model; in this process, with its memory, for no rounds at all."""
    figures: Figures = {}
    for name in OPERATIONS:
        found = [in_fresh_process(operation, model, name) for _ in range(rounds)] or [operation(model, name)]
        quantities = zip(*found, strict=True)
        figures[name] = dict(zip(("seconds", "peak_share"), map(list, quantities), strict=True))
    return figures


def cases(options: Options) -> Iterator[Case]:
    """A part of each model beside peft, then all of it."""
    models = {"full": ("125M", "Llama 7B"), "quick": ("125M",), "tiny": ("tiny",)}[options.effort]
    for model in models:
        shapes = dict(MODELS[model][1])
        if model == "Llama 7B":  # peft would take minutes for each of the wider ones
            shapes = {"self_attn.q_proj": shapes["self_attn.q_proj"]}
        named = {path.rpartition(".")[2]: shape for path, shape in shapes.items()}
        setting = {"model": model, "rank": RANK, "modules": len(named)}
        yield Case("combine", setting, partial(combining, named, options.seconds))
    for model in models:
        rounds = 3 if options.effort == "full" else 0
        yield Case("algebra", {"model": model, "rank": RANK}, partial(whole, model, rounds))


if __name__ == "__main__":
    main(cases)
