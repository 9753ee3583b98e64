"""A training step on models of several sizes: the limit, weft, its peers and full fine-tuning.

    python -m benchmarks.step [quick]

The limit is the frozen model's forward and the gradient of its embedded input: no LoRA work at all. Four figures: the
seconds of forward and backward; those of the whole step, with fused AdamW for all; the bytes that the forward pass
leaves for the backward pass; and the peak of memory over the loaded model, each in a fresh process. In bfloat16 peft
runs under autocast, as transformers' Trainer runs it: its factors stay in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import Case, Options, PeakMemory, compare, device, in_fresh_process, main
from benchmarks.models import HAS_LORALIB, SIZES, with_loralib, with_peft, with_weft
from benchmarks.records import Figures, Setting

RANK, OTHER_RANKS, DROPOUT = 8, (4, 16, 64), 0.05
DROPOUTS = (0.0, DROPOUT)
LIMIT, FULL, RECOMPUTING = "limit", "full fine-tuning", "weft, recomputing"

Step = Callable[[], object]


class Variant:
    """A model in one of the ways to train it.

    Args:
        name: the way.
        size: the model's.
        frozen: the model, whose weights all ways share but full fine-tuning.
        rank, dropout: of the adapter.
    """

    def __init__(self, name: str, size: str, frozen: nn.Module, rank: int, dropout: float) -> None:
        self.batch = SIZES[size].batch()
        dtype = next(frozen.parameters()).dtype
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        if name == LIMIT:
            self.model = frozen
            embedded = frozen.get_input_embeddings()(self.batch.pop("input_ids"))
            self.batch["inputs_embeds"] = embedded.detach().requires_grad_()
            self.trained: list[Tensor] = [self.batch["inputs_embeds"]]
            return
        if name == FULL:
            self.model = SIZES[size].model(dtype)
        else:
            attach = {"peft": with_peft, "loralib": with_loralib}.get(name, with_weft)
            self.model = attach(frozen, rank, dropout)
        if name == RECOMPUTING:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if name == "peft" and dtype == torch.bfloat16:
            self.context = partial(torch.autocast, device(), dtype)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def forward(self) -> Tensor:
        """The loss."""
        with self.context():
            loss: Tensor = self.model(**self.batch).loss
            return loss

    def forward_backward(self) -> None:
        """The loss's gradients."""
        torch.autograd.grad(self.forward(), self.trained)

    def step(self) -> Step:
        """The whole step; the limit has nothing to update."""
        if any(not isinstance(tensor, nn.Parameter) for tensor in self.trained):
            return self.forward_backward
        optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)

        def step() -> None:
            self.forward().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def times(size: str, rank: int, dropout: float, dtype: str, seconds: float, *, whole: bool) -> Figures:
    """Seconds of forward and backward, or of the whole step."""
    frozen = _frozen(size, dtype)
    steps: dict[str, Step] = {}
    for name in (LIMIT, "weft", "peft", *_loralib(), *_full(size)):
        variant = Variant(name, size, frozen, rank, dropout)
        steps[name] = variant.step() if whole else variant.forward_backward
    return compare(steps, seconds, rounds=(3, 60))


def saved(size: str, rank: int, dtype: str) -> Figures:
    """Bytes alive between the forward and the backward pass, without the model's own."""
    frozen = _frozen(size, dtype)
    return {
        label: {"saved_bytes": [saved_bytes(Variant(name, size, frozen, rank, dropout))]}
        for label, (name, dropout) in _with_dropouts(size).items()
    }


def saved_bytes(variant: Variant) -> int:
    """Bytes that one forward pass of the variant leaves alive."""
    variant.forward_backward()  # so that what is made once is made
    return bytes_left_by(variant.forward)


def bytes_left_by(forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that a forward pass makes and that live as long as its loss, whoever holds them and why."""
    with _Storages() as made:
        loss = forward()  # noqa: F841 # holds the graph, and what that holds
    return sum(size for storage, size in made.found.items() if not storage.expired())


class _Storages(TorchDispatchMode):
    """Notes every storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in held:
                self.found[StorageWeakRef(storage)] = storage.nbytes()
        return result


def peaks(size: str, rank: int, dtype: str) -> Figures:
    """The most memory in three whole steps over the loaded model, each variant in a process of its own."""
    return {
        label: {"peak_bytes": [in_fresh_process(peak_bytes, name, size, rank, dropout, dtype)]}
        for label, (name, dropout) in _with_dropouts(size).items()
    }


def peak_bytes(name: str, size: str, rank: int, dropout: float, dtype: str) -> int:
    """What one variant takes at most over the loaded model."""
    Variant(name, "0.5M", _frozen("0.5M", dtype), rank, dropout).step()()  # what is imported at first use, now is
    memory = PeakMemory()
    frozen = _frozen(size, dtype)
    copies = 2 if name == FULL else 1  # full fine-tuning trains a copy, which by itself it would not need
    step = Variant(name, size, frozen, rank, dropout).step()
    for _ in range(3):
        step()
    return memory.over_start() - copies * sum(parameter.nbytes for parameter in frozen.parameters())


def _frozen(size: str, dtype: str) -> nn.Module:
    return SIZES[size].model(getattr(torch, dtype)).requires_grad_(False)


def _with_dropouts(size: str) -> dict[str, tuple[str, float]]:
    """Label -> variant and dropout."""
    adapters = ("weft", "peft", *_loralib())
    return {
        LIMIT: (LIMIT, 0.0),
        **{name: (name, 0.0) for name in adapters},
        **{f"{name}, dropout": (name, DROPOUT) for name in adapters},
        f"{RECOMPUTING}, dropout": (RECOMPUTING, DROPOUT),
        **{name: (name, 0.0) for name in _full(size)},
    }


def _loralib() -> tuple[str, ...]:
    return ("loralib",) if HAS_LORALIB else ()


def _full(size: str) -> tuple[str, ...]:
    return () if size == "8B" else (FULL,)  # its gradients and moments do not fit one GPU


def cases(options: Options) -> Iterator[Case]:
    """Every model in float32 and bfloat16 at rank 8; other ranks in float32 without the optimizer. 8B on a GPU."""
    sizes = {"full": tuple(SIZES), "quick": ("0.5M", "5M"), "tiny": ("0.5M",)}[options.effort]
    for size in sizes:
        if size == "8B":
            if device() == "cuda":
                yield from _cases(size, 16, "bfloat16", options)
            continue
        yield from _cases(size, RANK, "float32", options)
        if options.effort == "full":
            yield from _cases(size, RANK, "bfloat16", options)
            for rank in OTHER_RANKS:
                yield from _timed(size, rank, "float32", options, ("forward_backward",))


def _cases(size: str, rank: int, dtype: str, options: Options) -> Iterator[Case]:
    yield from _timed(size, rank, dtype, options)
    setting: Setting = {"model": size, "rank": rank, "dtype": dtype, "device": device()}
    yield Case("saved", setting, partial(saved, size, rank, dtype))
    if options.effort == "full" and (dtype == "float32" or device() == "cuda"):
        yield Case("peak", setting, partial(peaks, size, rank, dtype))


def _timed(
    size: str, rank: int, dtype: str, options: Options, benchmarks: tuple[str, ...] = ("forward_backward", "step")
) -> Iterator[Case]:
    for dropout in DROPOUTS if options.effort == "full" else (DROPOUT,):
        setting: Setting = {"model": size, "rank": rank, "dtype": dtype, "device": device(), "dropout": dropout}
        for benchmark in benchmarks:
            measure = partial(times, size, rank, dropout, dtype, options.seconds, whole=benchmark == "step")
            yield Case(benchmark, setting, measure)


if __name__ == "__main__":
    main(cases)
