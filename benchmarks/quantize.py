"""A base in 8 bits beside the same in float32: the size of its weights, a step, and what merging would lose.

python -m benchmarks.quantize [quick]
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import weft
from benchmarks.harness import Case, Options, compare, device, main
from benchmarks.models import SIZES
from benchmarks.records import Figures, Setting
from weft import bundled_base
from weft.nn import storage_of
from weft.nn.quantized import round_to_8bit
from weft.training.quantize import weights_as

RANK = 8
CHANGE = 0.02
"""||D|| / ||W|| of the change that is merged: about what training makes of it."""

FORMS: dict[str, Callable[[], dict[str, object]]] = {
    "float32": lambda: weights_as(torch.float32, "none"),
    "bfloat16": lambda: weights_as(torch.bfloat16, "none"),
    "8 bits": lambda: weights_as(torch.float32, "8bit"),
}


def measure(size: str, rows: int, tokens: int, seconds: float) -> Figures:
    """Seconds of a forward and backward pass with an adapter, bytes of the base's weights, and errors of rounding."""
    with tempfile.TemporaryDirectory() as folder:
        if size != "bundled":
            SIZES[size].model().save_pretrained(folder)
        path = bundled_base() if size == "bundled" else folder
        models = {name: AutoModelForCausalLM.from_pretrained(path, **form()) for name, form in FORMS.items()}
    bytes_of = {name: float(sum(p.nbytes for p in model.parameters())) for name, model in models.items()}
    del models["bfloat16"]
    rounding, lost = errors(models["8 bits"], models["float32"])
    for model in models.values():
        nn.Module.to(model, device()).train()
        weft.attach(model, weft.LoRAConfig(rank=RANK))
    torch.manual_seed(1)
    ids = torch.randint(0, models["float32"].config.vocab_size, (rows, tokens), device=device())
    figures = compare({name: partial(step, model, ids) for name, model in models.items()}, seconds)
    for name, size_of in bytes_of.items():
        figures.setdefault(name, {})["weight_bytes"] = [size_of]
    figures["8 bits"] |= {"rounding": [rounding], "lost_by_merging": [lost]}
    return figures


def step(model: PreTrainedModel, ids: Tensor) -> None:
    """A forward and a backward pass."""
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


@torch.no_grad()
def errors(quantized: nn.Module, plain: nn.Module) -> tuple[float, float]:
    """Means of ||Q(W) - W|| / ||W||, and, for a random D of rank 8, of ||Q(Q(W) + D) - (Q(W) + D)|| / ||D||."""
    torch.manual_seed(2)
    found: list[tuple[float, float]] = []
    for path, module in quantized.named_modules():
        storage = storage_of(module)
        if storage is None:
            continue
        W, rounded = plain.get_parameter(f"{path}.weight").float().cpu(), storage.dense().cpu()
        D = torch.randn(W.shape[0], RANK) @ torch.randn(RANK, W.shape[1])
        D *= CHANGE * W.norm() / D.norm()
        merged = rounded + D
        found.append(
            (float((rounded - W).norm() / W.norm()), float((round_to_8bit(merged) - merged).norm() / D.norm()))
        )
    rounding, lost = zip(*found, strict=True)
    return statistics.mean(rounding), statistics.mean(lost)


def cases(options: Options) -> Iterator[Case]:
    """The bundled base and, at full effort, a random Llama of 124M parameters."""
    sizes = {"full": ("bundled", "124M"), "quick": ("bundled",), "tiny": ("0.5M",)}[options.effort]
    for size in sizes:
        rows, tokens = (2, 8) if options.effort == "tiny" else (4, 128)
        setting: Setting = {"model": size, "rank": RANK, "batch": rows, "tokens": tokens, "change": CHANGE,
                            "device": device()}  # fmt: skip
        yield Case("quantize", setting, partial(measure, size, rows, tokens, options.seconds))


if __name__ == "__main__":
    main(cases)
