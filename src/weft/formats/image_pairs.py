"""What the files of image tools hold: plain LoRA of linear layers and convolutions, for the parts of one pipeline.

| layer | down, or A | up, or B |
|---|---|---|
| linear | (r, in) | (out, r) |
| convolution | (r, in, *kernel) | (out, r, 1, ...) |

A module's path begins with the pipeline's name for the part that it stands in, as in ``unet.mid_block.attentions.0``.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.adapter import Adapter
from weft.config import LoRA, LoRAConfig
from weft.errors import FormatError
from weft.formats.atomic import staged_files
from weft.formats.peft_keys import Pair, pair_problem, peft_pair, shape_of, weft_pair
from weft.formats.peft_metadata import OwnFacts, own_facts
from weft.formats.tensor_file import write_tensors
from weft.linalg import LowRank

# CLIP's text encoder without a projection has lost this step of its modules' paths in transformers 5; files keep it.
TEXT_MODEL = "text_model."
_FLAT_CLIP = ("embeddings.", "encoder.layers.", "final_layer_norm.")


def plain_pairs(adapter: Adapter, tool: str, parts: tuple[str, ...]) -> dict[str, Pair]:
    """The factor pairs, in the shapes above.

    Args:
        adapter: to be saved.
        tool: what reads the file, for messages.
        parts: those of a pipeline that the file can name.

    Raises:
        FormatError: the file cannot hold all of the adapter; the message names what it cannot.
    """
    if type(adapter.config.variant) is not LoRA:
        raise FormatError(
            f"a file for {tool} holds plain LoRA, and this adapter's variant is {adapter.config.variant!r}; save it "
            "in the peft format, or merge it into the base and extract a plain LoRA"
        )
    problems = [f"{key}: trained whole, or a bias" for key in adapter.tensors]
    problems += [f"{key}: of a companion" for key in adapter.companions]
    pairs = {}
    for path, factors in adapter.factors.items():
        layout = adapter.layouts[path]
        if path.partition(".")[0] not in parts:
            problems.append(f"{path}: expected a path that begins with {', '.join(parts)}")
        elif layout.kind not in ("linear", "conv") or layout.groups != 1:
            grouped = f" of {layout.groups} groups" if layout.groups != 1 else ""
            problems.append(f"{path}: {layout.kind}{grouped}, expected a linear layer or an ungrouped convolution")
        else:
            pairs[path] = peft_pair(factors.A, factors.B, layout)
    if problems:
        raise FormatError(f"a file for {tool} cannot hold this adapter:\n  " + "\n  ".join(problems))
    if not pairs:
        raise FormatError("the adapter holds no factors; there is nothing to save")
    return pairs


def save_file(
    adapter: Adapter,
    path: Path,
    tensors: Mapping[str, Tensor],
    scaling: Mapping[str, float],
    modules: Mapping[str, str],
) -> None:
    """Writes one safetensors file, complete or not at all, with what only weft knows in its header."""
    metadata = {"format": "pt", "weft": own_facts(adapter, scaling, modules)}
    with staged_files(path.parent, [path.name]) as folder:
        write_tensors(folder / path.name, tensors, metadata)


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file; none if it is no such file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def read_adapter(
    path: Path,
    halves: Mapping[str, Mapping[str, Tensor]],
    scaling: Mapping[str, float],
    own: OwnFacts,
    problems: list[str],
) -> Adapter:
    """The adapter that a file's pairs amount to.

    Args:
        path: the file, for messages.
        halves: module path -> its tensors, by "A" and "B".
        scaling: module path -> scaling; 1 where there is none.
        own: what weft wrote into the header.
        problems: a line for each key that was not understood.

    Raises:
        FormatError: there are problems, here or given.
    """
    pairs: dict[str, Pair] = {}
    for module, tensors in halves.items():
        problem = pair_problem(module, tensors, is_embedding=False, pairs=pairs)
        if problem is None:
            try:
                pairs[module] = weft_pair(tensors["A"], tensors["B"], is_embedding=False, magnitude=None)
            except ValueError as error:
                problem = f"{module}: {error}"
        if problem is not None:
            problems.append(problem)
    if problems:
        raise FormatError(f"{path}: {len(problems)} entries cannot be read:\n  " + "\n  ".join(problems))
    factors = {module: LowRank(pair.B, pair.A, scaling.get(module, 1.0)) for module, pair in pairs.items()}
    return Adapter(
        config=own.config or _config(factors),
        factors=factors,
        layouts={module: pair.layout for module, pair in pairs.items()},
        base=own.base,
        provenance=own.provenance or {},
    )


def stored_path(path: str) -> str:
    """A module's path as files have it."""
    part, _, rest = path.partition(".")
    flat = part.startswith("text_encoder") and f"{rest}.".startswith(_FLAT_CLIP)
    return f"{part}.{TEXT_MODEL}{rest}" if flat else path


def module_path(stored: str, own: OwnFacts, has_transformer: bool) -> str:
    """The inverse of `stored_path`: as the file's own header has it, else as the pipelines of today are built.

    Stable Diffusion's only, and SDXL's first, text encoder is a CLIPTextModel, without the step; those of pipelines
    around a transformer have a projection, and the step with it.
    """
    if stored in own.modules:
        return own.modules[stored]
    flat = stored.startswith(f"text_encoder.{TEXT_MODEL}") and not has_transformer
    return stored.replace(TEXT_MODEL, "", 1) if flat else stored


def shaped(key: str, tensor: Tensor) -> str | None:
    """Why a file's tensor can be no factor, or None."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return f"{key}: found {tensor.dtype} {shape_of(tensor)}, expected floating-point numbers"
    return None


def exact_alpha(scaling: float, rank: int) -> Tensor:
    """alpha, (), from which a reader computes alpha / rank; float64 where float32 would round it."""
    alpha = torch.tensor(scaling * rank, dtype=torch.float64)
    return alpha.float() if alpha.float().double() == alpha else alpha


def _config(factors: Mapping[str, LowRank]) -> LoRAConfig:
    """A configuration for a file of another tool: the rank and alpha of most modules."""
    (rank, alpha), _ = Counter((value.rank, value.scaling * value.rank) for value in factors.values()).most_common(1)[0]
    return LoRAConfig(rank=rank, alpha=alpha, targets=tuple(factors))
