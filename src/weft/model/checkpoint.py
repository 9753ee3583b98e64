"""Merging an adapter into the files of a checkpoint, one tensor at a time; the model is never in memory.

Each adapted layer is made real on its own, merged by `weft.model.merge`, and written: so what is written is,
bit for bit, what `weft.merge` on the loaded model and a save would give.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.adapter import Adapter
from weft.errors import BindingError, MergeError
from weft.linalg import LowRank
from weft.model.attach import QUANTIZE, attach
from weft.model.merge import merge
from weft.model.modules import base_modules, sharing
from weft.model.new_folder import check_output, new_folder
from weft.model.shards import INDEX, Checkpoint, StoredTensor, write_shard
from weft.model.stored import StoredModel
from weft.nn import EightBit, layer_kind_of
from weft.nn.quantized import round_to_8bit

# Files that hold weights, or that describe the base and not what becomes of it.
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".tflite", ".ot"}
)
_NOT_COPIED = frozenset({INDEX, "pytorch_model.bin.index.json", "README.md", "adapter_config.json"})
_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class CheckpointReport:
    """What a merge of files did.

    Attributes:
        output: the folder that was written.
        files: how many weight files.
        tensors: how many tensors they hold.
        changed: how many of those the adapter changed.
        nbytes: the size of all tensors.
        changed_nbytes: the size of the changed ones.
        mean_relative_change: the mean of ||W' - W||_F / ||W||_F over the weights that factors changed.
        trained_on: how the weights were stored that the adapter was trained on, if they were quantised; these are not.
        mean_rounding: then, for 8 bits, the mean of ||Q(W) - W||_F / ||W||_F over the same weights, Q(W) being what it
            was trained on.
    """

    output: Path
    files: int
    tensors: int
    changed: int
    nbytes: int
    changed_nbytes: int
    mean_relative_change: float
    trained_on: str | None
    mean_rounding: float | None


def merge_checkpoint(
    base: StoredModel,
    adapter: Adapter,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    any_base: bool = False,
    overwrite: bool = False,
    progress: Callable[[StoredTensor], None] = lambda tensor: None,
) -> CheckpointReport:
    """Writes `base` with `adapter` merged into it to `output`, complete or not at all.

    The delta is added in float32 and rounded once. Files keep their names and their tensors; configuration and
    tokenizer files are copied. At most one layer's weights are in memory.

    Args:
        base: the model on disk.
        adapter: what to merge.
        output: the folder to write.
        dtype: what floating-point tensors become; None leaves each as it is.
        any_base: merge even if the adapter was made for another base.
        overwrite: replace what stands at `output`.
        progress: called for each tensor written.

    Raises:
        ConfigError: `output` is in use, or is part of the base.
        BaseMismatchError: the adapter was made for another base.
        BindingError: entries of the adapter that did not fit the model or the files; all are listed.
        MergeError: companions, a tied weight that the adapter does not change alike, or a weight that overflows.
        FormatError: the disk did not take the files.
    """
    if adapter.companions:
        names = " and ".join(companion.name for companion in adapter.config.companions)
        raise MergeError(
            f"cannot merge; nothing was written: the adapter has a companion ({names}), which changes outputs by what "
            "they are, and no weight can; attach it instead"
        )
    source = base.checkpoint
    trained_on = adapter.provenance.get(QUANTIZE)
    check_output(output, overwrite, keep=[source.folder])
    base.check(adapter, any_base=any_base)
    merging = _Merging(base.model, adapter, _aliases(base.model, adapter), base.names, source, dtype)
    merging.check_bound()

    size = 0
    with new_folder(output) as folder:
        for file in source.files:
            tensors = {t.name: t for t in source.tensors.values() if t.file == file}
            for written in write_shard(folder / file, tensors, merging.value, dtype, source.metadata[file]):
                size += written.nbytes
                progress(source.tensors[written.name])
        _copy_other_files(source.folder, folder, dtype)
        if source.index is not None:
            index = dict(source.index)
            if isinstance(index.get("metadata"), dict):
                index["metadata"] = index["metadata"] | {"total_size": size}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return CheckpointReport(
        output,
        len(source.files),
        len(source.tensors),
        len(merging.changed),
        size,
        sum(merging.changed.values()),
        _mean(merging.relative_changes) or 0.0,
        None if trained_on is None else str(trained_on),
        _mean(merging.roundings),
    )


@dataclass(eq=False)
class _Merging:
    """The values to write.

    Attributes:
        model: the base, on the meta device.
        adapter: what is merged.
        aliases: parameter name -> the one name that its tied parameters go by.
        names: key -> parameter name.
        source: the base's files.
        dtype: what floating-point tensors become, if that changes.
        changed: key -> bytes written, of the tensors changed so far.
        relative_changes: of the weights changed so far.
        roundings: how far 8 bits are from each of them, if the adapter was trained on these.
    """

    model: nn.Module
    adapter: Adapter
    aliases: Mapping[str, str]
    names: Mapping[str, str]
    source: Checkpoint
    dtype: torch.dtype | None
    changed: dict[str, int] = field(default_factory=dict)
    relative_changes: list[float] = field(default_factory=list)
    roundings: list[float] = field(default_factory=list)
    _weights: dict[str, str] = field(init=False)
    _tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Parameter name -> the adapted module that it is the weight of; for tied ones, one of the modules.
        self._weights = {self._one(f"{path}.weight"): path for path in self.adapter.factors}
        self._tensors = {self._one(name): tensor for name, tensor in self.adapter.tensors.items()}

    def _one(self, name: str) -> str:
        return self.aliases.get(name, name)

    def check_bound(self) -> None:
        """Raises BindingError unless each change meets exactly one stored tensor of its shape."""
        keys: dict[str, list[str]] = {}
        for key, name in self.names.items():
            keys.setdefault(name, []).append(key)
        problems = []
        for name in [*self._weights, *self._tensors]:
            tied = [other for other, one in self.aliases.items() if one == name and other != name]
            found = {alias: keys[alias] for alias in [name, *tied] if alias in keys}
            if not found:
                problems.append(f"{name}: no tensor of the files is this parameter, as it is")
            for alias, stored in found.items():
                problems += self._misfits(alias, stored)
        if problems:
            raise BindingError(
                f"{len(problems)} changes did not fit the files in {self.source.folder}; nothing was written:\n  "
                + "\n  ".join(problems)
                + "\nLoad the model, attach the adapter, call weft.merge and save_pretrained instead"
            )

    def _misfits(self, name: str, keys: list[str]) -> Iterator[str]:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        expected = module.get_parameter(leaf) if leaf in module._parameters else module.get_buffer(leaf)
        if len(keys) > 1:
            yield f"{name}: the files hold it {len(keys)} times, as {', '.join(keys)}"
        for key in keys:
            stored = self.source.tensors[key]
            if stored.shape != tuple(expected.shape):
                yield f"{name}: found {stored.shape} in {stored.file}, expected {tuple(expected.shape)}"
            elif name in self._weights and stored.dtype is None:
                yield f"{name}: stored as {stored.dtype_name} in {stored.file}; an unquantised base is needed"

    def value(self, stored: StoredTensor) -> Tensor:
        """What to write for a stored tensor."""
        name = self._one(self.names.get(stored.name, ""))
        old = self.source.read(stored.name)
        dtype = self.dtype if self.dtype is not None and stored.dtype is not None else old.dtype
        changes = name in self._tensors or name in self._weights
        if not changes and dtype == old.dtype:
            return old
        if name in self._tensors:
            new = self._tensors[name].to(dtype)
        elif name in self._weights:
            path = self._weights[name]
            new = self._merged_weight(path, old if dtype == old.dtype else old.float()).to(dtype)
            self.relative_changes.append(_relative_change(old, new))
        else:
            new = old.to(dtype)
        if dtype.is_floating_point and not torch.isfinite(new).all() and torch.isfinite(old).all():
            raise MergeError(
                f"{stored.name}: its new values do not fit {dtype} (infinite or not a number); nothing was written. "
                "Choose a wider dtype, or look at the adapter with `weft inspect`"
            )
        if changes:
            self.changed[stored.name] = new.nbytes
        return new

    def _merged_weight(self, path: str, weight: Tensor) -> Tensor:
        """The weight of one layer with its factors merged: the layer alone, in a model that holds nothing else."""
        layer = copy.deepcopy(self.model.get_submodule(path))
        layer.register_parameter("weight", nn.Parameter(weight.clone(), requires_grad=False))
        bias = layer._parameters.get("bias")
        if bias is not None:  # written by itself where it is trained; here it only has to be there
            layer.register_parameter("bias", nn.Parameter(torch.zeros(bias.shape), requires_grad=False))
        if self.adapter.provenance.get(QUANTIZE) == EightBit.name:
            kind = layer_kind_of(layer)
            assert kind is not None  # the adapter was attached to it
            W = kind.matrix(layer).detach().float()
            self.roundings.append(_relative_change(W, round_to_8bit(W)))
        root = parent = nn.Module()
        *outer, last = path.split(".")
        for name in outer:
            parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, layer)
        alone = Adapter(
            replace(self.adapter.config, train_modules=()),
            {path: self.adapter.factors[path]},
            {path: self.adapter.layouts[path]},
            magnitudes={key: value for key, value in self.adapter.magnitudes.items() if key == path},
        )
        merge(attach(root, alone, any_base=True), undo=None)
        return layer.get_parameter("weight").detach()


def _relative_change(old: Tensor, new: Tensor) -> float:
    size = float(torch.linalg.vector_norm(old.float()))
    return float(torch.linalg.vector_norm(new.float() - old.float())) / size if size else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _aliases(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Parameter name -> the name to know it by, for weights that several modules share.

    Raises:
        MergeError: the adapter changes a shared weight in one module and not, or not alike, in another.
    """
    aliases: dict[str, str] = {}
    problems: list[str] = []
    for paths in sharing(base_modules(model)).values():
        names = [f"{path}.weight" for path in paths]
        aliases |= dict.fromkeys(names, names[0])
        factors = [adapter.factors.get(path) for path in paths]
        magnitudes = [adapter.magnitudes.get(path) for path in paths]
        tensors = [adapter.tensors.get(name) for name in names]
        first = next((i for i in range(len(paths)) if factors[i] is not None or tensors[i] is not None), None)
        if first is None:
            continue
        for i, path in enumerate(paths):
            alike = _same_factors(factors[first], factors[i]) and _same_tensor(magnitudes[first], magnitudes[i])
            if not alike or not _same_tensor(tensors[first], tensors[i]):
                problems.append(
                    f"{paths[first]}: its weight is also that of {path!r}, which the adapter does not change alike"
                )
    if problems:
        raise MergeError("cannot merge; nothing was written:\n  " + "\n  ".join(problems))
    return aliases


def _same_factors(a: LowRank | None, b: LowRank | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.scaling == b.scaling and torch.equal(a.A, b.A) and torch.equal(a.B, b.B))


def _same_tensor(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _copy_other_files(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Copies what is not weights: configuration, tokenizer, chat templates, licence."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS and path.name not in _NOT_COPIED:
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and path.name in _FOLDERS:
            shutil.copytree(path, target / path.name)
    config = target / "config.json"
    if dtype is not None and config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = str(dtype).removeprefix("torch.")
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
