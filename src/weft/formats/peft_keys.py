"""PEFT's tensors and weft's: names, orientations, and the grouped convolution.

| layer | weft | PEFT |
|---|---|---|
| linear | B (out, r), A (r, in) | lora_B.weight (out, r), lora_A.weight (r, in) |
| embedding | B (V, r), A (r, d) | lora_embedding_A (r, V) = B^T, lora_embedding_B (d, r) = A^T |
| conv | B (out, r), A (r, in/g * prod(k)) | lora_B.weight (out, R/g, 1...), lora_A.weight (R, in, *k) |

DoRA's magnitudes are lora_magnitude_vector, (out) for a linear layer, (d) for an embedding and (1, out, 1...) for a
convolution; weft's are flat. PEFT takes the norms that they are measured by over the same entries of W as weft does,
but for a grouped convolution, where it multiplies factors of other groups with each other: that is refused.

For g groups, PEFT's A is an ordinary convolution over all channels and its B a grouped one: group i of the
output sees rows i R/g to (i+1) R/g of A. That is a change of the grouped weight only where those rows are
zero outside the group's own input channels. weft writes its A once for each group, at R = g r, into such
blocks, so that the change is the same; it reads back blocks that are equal at rank r, others as they are at
rank R (the blocks of A stacked, those of B on a diagonal), and refuses an A that has entries off the blocks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.adapter import Layout

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>A|B)(?:\.(?P<adapter>[^.]+))?\.weight")
_MAGNITUDE = re.compile(r"(?P<path>.+)\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?")
_EMBEDDING = re.compile(r"(?P<path>.+)\.lora_embedding_(?P<factor>A|B)(?:\.(?P<adapter>[^.]+))?")

# Of a small module beside a layer, which weft alone knows: the layer's path, the companion's name, the tensor's.
_COMPANION = re.compile(r"(?P<path>.+)\.companion\.(?P<name>[^.]+)\.(?P<tensor>[^.]+)")

# Keys that stand for something else than plain LoRA: (pattern, what it is).
_FOREIGN = (
    (
        re.compile(r".*\.lora_[AB](\..+)?\.bias"),
        "a bias inside the adapter (lora_bias), which no change of W stands for",
    ),
    (re.compile(r".*\.trainable_tokens_(delta|original)(\..*)?"), "trained token rows (trainable_token_indices)"),
    (re.compile(r".*\.lora_[^.]+(\..*)?"), "part of a LoRA variant that weft does not know"),
)
_GROUPED_DORA = "PEFT's DoRA takes other norms of a grouped convolution's weight; leave that layer out, or merge it"
_NESTED = "an adapter nested inside another one's layer (nn.MultiheadAttention, or target_parameters)"


@dataclass(frozen=True, eq=False)
class Pair:
    """A factor pair as PEFT stores it, with the rank that PEFT's scaling is computed from, and DoRA's magnitudes."""

    A: Tensor
    B: Tensor
    layout: Layout
    rank: int
    magnitude: Tensor | None = None


@dataclass(eq=False)
class Found:
    """What the keys of a PEFT file stand for.

    Attributes:
        pairs: module path -> factor pair, in weft's orientation.
        tensors: parameter path -> tensor, of biases, whole modules and copies of base weights.
        companions: as `Adapter.companions`.
        problems: a line for each key that could not be understood.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    companions: dict[str, Tensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def peft_pair(A: Tensor, B: Tensor, layout: Layout, magnitude: Tensor | None = None) -> Pair:
    """A weft factor pair as PEFT stores it (see the module for shapes).

    Raises:
        ValueError: PEFT has no such layer kind, or computes something else for it.
    """
    rank = A.shape[0]
    if layout.kind == "linear":
        return Pair(A, B, layout, rank, magnitude)
    if layout.kind == "embedding":
        return Pair(B.T, A.T, layout, rank, magnitude)
    if layout.kind != "conv":
        raise ValueError(f"PEFT has no place for a layer of the kind {layout.kind!r}")
    groups, kernel = layout.groups, layout.kernel
    if magnitude is not None:
        if groups > 1:
            raise ValueError(_GROUPED_DORA)
        magnitude = magnitude.reshape(1, -1, *[1] * len(kernel))
    block = A.reshape(rank, -1, *kernel)
    width = block.shape[1]
    spread = block.new_zeros(groups, rank, groups, width, *kernel)
    for group in range(groups):
        spread[group, :, group] = block
    down = spread.reshape(groups * rank, groups * width, *kernel)
    return Pair(down, B.reshape(*B.shape, *[1] * len(kernel)), layout, groups * rank, magnitude)


def peft_keys(path: str, pair: Pair) -> dict[str, Tensor]:
    """The keys of one module's factor pair."""
    magnitude = {} if pair.magnitude is None else {f"{PREFIX}{path}.lora_magnitude_vector": pair.magnitude}
    if pair.layout.kind == "embedding":
        return {f"{PREFIX}{path}.lora_embedding_A": pair.A, f"{PREFIX}{path}.lora_embedding_B": pair.B} | magnitude
    return {f"{PREFIX}{path}.lora_A.weight": pair.A, f"{PREFIX}{path}.lora_B.weight": pair.B} | magnitude


def peft_tensor_key(key: str, adapted: Mapping[str, object]) -> str:
    """The key of a tensor beside the factors; the parameters of an adapted module are those of its base layer."""
    path, _, name = key.rpartition(".")
    return f"{PREFIX}{path}.base_layer.{name}" if path in adapted else f"{PREFIX}{key}"


def companion_key(key: str) -> str:
    """The key of a companion's tensor, one of `Adapter.companions`."""
    path, name, tensor = key.rsplit(".", 2)
    return f"{PREFIX}{path}.companion.{name}.{tensor}"


def understand(tensors: Mapping[str, Tensor]) -> Found:
    """What the keys of a PEFT file stand for; whatever is not understood is a problem, never left out."""
    found = Found()
    factors: dict[tuple[str, bool], dict[str, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    adapters: dict[str, str] = {}
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        factor = _FACTOR.fullmatch(name)
        match = factor or _EMBEDDING.fullmatch(name)
        magnitude = _MAGNITUDE.fullmatch(name) if match is None else None
        foreign = _foreign(name) if match is None else None
        companion = _COMPANION.fullmatch(name)
        if name == key:
            found.problems.append(f"{key}: expected a name that starts with {PREFIX!r}")
        elif tensor.is_meta or tensor.numel() == 0:
            found.problems.append(f"{key}: it has no values, shape {shape_of(tensor)}; a part of a sharded model?")
        elif companion is not None:
            found.companions[f"{companion['path']}.{companion['name']}.{companion['tensor']}"] = tensor
        elif magnitude is not None:
            if magnitude["path"] in magnitudes:
                found.problems.append(f"{key}: a second lora_magnitude_vector of {magnitude['path']}")
            magnitudes[magnitude["path"]] = tensor
        elif match is None and foreign is not None:
            found.problems.append(f"{key}: {foreign}")
        elif match is None:
            plain[name] = tensor
        elif ".base_layer." in f".{match['path']}.":
            found.problems.append(f"{key}: {_NESTED}")
        else:
            adapters.setdefault(match["adapter"] or "", key)
            pair = factors.setdefault((match["path"], factor is None), {})
            if match["factor"] in pair:
                found.problems.append(f"{key}: a second lora_{match['factor']} of {match['path']}")
            pair[match["factor"]] = tensor
    if len(adapters) > 1:
        named = ", ".join(f"{name or '(no name)'!r} in {key}" for name, key in sorted(adapters.items()))
        found.problems.append(f"the keys name several adapters ({named}); one file holds one adapter")
    for (path, is_embedding), pair in factors.items():
        problem = pair_problem(path, pair, is_embedding, found.pairs)
        if problem is None:
            try:
                found.pairs[path] = weft_pair(pair["A"], pair["B"], is_embedding, magnitudes.get(path))
            except ValueError as error:
                problem = f"{path}: {error}"
        if problem is not None:
            found.problems.append(problem)
    factor_paths = {path for path, _ in factors}
    found.problems += [
        f"{path}: found lora_magnitude_vector without lora_A and lora_B" for path in magnitudes.keys() - factor_paths
    ]
    for key, tensor in _trained(plain, set(adapters) | {"default"}, found.pairs):
        if key in found.tensors and not _same_bits(found.tensors[key], tensor):
            found.problems.append(f"{key}: the file holds two different tensors for it")
        found.tensors[key] = tensor
    return found


def _foreign(name: str) -> str | None:
    """What a key stands for that is no plain LoRA's; None if it may be a tensor beside the factors."""
    return next((what for pattern, what in _FOREIGN if pattern.fullmatch(f".{name}")), None)


def pair_problem(path: str, pair: Mapping[str, Tensor], is_embedding: bool, pairs: Mapping[str, Pair]) -> str | None:
    """Why one module's tensors, by "A" and "B", are no factor pair beside those found already; None if they are."""
    infix = "lora_embedding_" if is_embedding else "lora_"
    if len(pair) == 1:
        (there,) = pair
        return f"{path}: found {infix}{there} {shape_of(pair[there])} without its {infix}{'AB'.replace(there, '')}"
    A, B = pair["A"], pair["B"]
    wide = all(factor.is_floating_point() and factor.element_size() >= 2 for factor in (A, B))
    dimensions = A.ndim == B.ndim and A.ndim in ((2,) if is_embedding else (2, 3, 4, 5))
    if wide and dimensions and path not in pairs and (A.ndim > 2 or A.shape[0] == B.shape[1]):
        return None
    shapes = f"{infix}A {shape_of(A)} and {infix}B {shape_of(B)}"
    if path in pairs:
        return f"{path}: found {shapes} beside the factors of another layer kind"
    if not wide:
        return f"{path}: {shapes} are stored as {A.dtype} and {B.dtype}, expected float16, bfloat16, float32 or float64"
    if not dimensions:
        return f"{path}: found {shapes}, expected two dimensions each, or 3 to 5 each for a convolution"
    return f"{path}: found {shapes}; the ranks {A.shape[0]} and {B.shape[1]} differ"


def weft_pair(A: Tensor, B: Tensor, is_embedding: bool, magnitude: Tensor | None) -> Pair:
    """A PEFT pair in weft's orientation; `rank` stays PEFT's."""
    if magnitude is not None:
        outputs = B.shape[0]
        shape = (outputs,) if B.ndim == 2 else (1, outputs, *B.shape[2:])
        if magnitude.shape not in (shape, (outputs,)) or not magnitude.is_floating_point():
            raise ValueError(f"found lora_magnitude_vector {shape_of(magnitude)} ({magnitude.dtype}), expected {shape}")
        magnitude = magnitude.flatten()
    dtype = torch.promote_types(A.dtype, B.dtype)
    A, B, rank = A.to(dtype), B.to(dtype), A.shape[0]
    if is_embedding:
        return Pair(B.T.contiguous(), A.T.contiguous(), Layout("embedding"), rank, magnitude)
    if A.ndim == 2:
        return Pair(A, B, Layout("linear"), rank, magnitude)
    kernel = tuple(A.shape[2:])
    out, r = B.shape[:2]
    groups = rank // r
    if any(size != 1 for size in B.shape[2:]) or rank % r or out % groups or A.shape[1] % groups:
        raise ValueError(
            f"found lora_A {shape_of(A)} and lora_B {shape_of(B)}; expected (R, in, *kernel) and (out, R/groups, 1...)"
        )
    if groups == 1:
        return Pair(A.flatten(1), B.flatten(1), Layout("conv", kernel), rank, magnitude)
    if magnitude is not None:
        raise ValueError(_GROUPED_DORA)
    spread = A.reshape(groups, r, groups, -1, *kernel)
    blocks = torch.stack([spread[group, :, group] for group in range(groups)]).flatten(2)  # (g, r, in/g * prod(k))
    if blocks.count_nonzero() != A.count_nonzero():
        raise ValueError(
            f"its convolution has {groups} groups, and lora_A {shape_of(A)} mixes channels across them: that is no "
            "change of the grouped weight. weft cannot hold it (PEFT cannot merge it either); train it again with weft"
        )
    layout = Layout("conv", kernel, groups)
    B = B.flatten(1)
    if all(torch.equal(block, blocks[0]) for block in blocks):
        return Pair(blocks[0].clone(), B, layout, rank)
    diagonal: Tensor = torch.block_diag(*B.chunk(groups))  # type: ignore[no-untyped-call]
    return Pair(blocks.flatten(0, 1), diagonal, layout, rank)


def _trained(
    plain: Mapping[str, Tensor], adapters: set[str], pairs: Mapping[str, Pair]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors beside the factors, under the base's own parameter names."""
    for key, tensor in plain.items():
        parts = key.split(".")
        if "original_module" in parts[:-1]:
            continue  # the base's own copy of a module that is trained whole: PEFT saves its bias for bias="all"
        if "modules_to_save" in parts[:-1]:
            place = parts.index("modules_to_save")
            end = place + (2 if parts[place + 1] in adapters and place + 2 < len(parts) else 1)
            parts = parts[:place] + parts[end:]
        elif len(parts) > 2 and parts[-2] == "base_layer" and ".".join(parts[:-2]) in pairs:
            parts = [*parts[:-2], parts[-1]]
        yield ".".join(parts), tensor


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape, as messages have it."""
    return f"({', '.join(map(str, tensor.shape))})"
