"""A checkpoint folder's safetensors files, read and written one tensor at a time.

safetensors' own writer wants every tensor of a file at once; the one here takes them one by one, so that a file
of any size passes through the memory of one tensor.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.errors import FormatError
from weft.formats.tensor_file import DTYPE_NAMES, packed_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATING = {name: dtype for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header has it.

    Attributes:
        name: its key.
        file: the file, within the folder.
        dtype_name: the format's name of its dtype, such as ``BF16``.
        shape: its shape.
        nbytes: its size in the file.
    """

    name: str
    file: str
    dtype_name: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of a plain floating-point tensor; None for whole numbers, booleans and quantised forms."""
        return _FLOATING.get(self.dtype_name)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, in one safetensors file or in shards with an index.

    Attributes:
        folder: the folder.
        tensors: name -> tensor, file by file, in the order of the files.
        metadata: file -> the header's own metadata.
        index: the index file's content; None for a single file.
    """

    folder: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Reads the headers of a folder's weights; none of the weights.

        Raises:
            FormatError: no safetensors there, a damaged file, or an index that does not say what the files hold.
        """
        index = _read_index(folder)
        files = [SINGLE] if index is None else sorted(set(index["weight_map"].values()))
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, Mapping[str, str]] = {}
        for file in files:
            found, metadata[file] = _read_header(folder, file)
            for tensor in found:
                if index is None or index["weight_map"].get(tensor.name) == file:
                    tensors[tensor.name] = tensor
        missing = [] if index is None else sorted(index["weight_map"].keys() - tensors.keys())
        if missing:
            raise FormatError(
                f"{folder / INDEX} promises {len(missing)} tensors that the files do not hold, first {missing[0]!r}; "
                "fetch the checkpoint again"
            )
        return cls(folder, tensors, metadata, index)

    @property
    def files(self) -> list[str]:
        """The files with weights."""
        return list(self.metadata)

    @property
    def nbytes(self) -> int:
        """The size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file: memory is used only for what is read of it."""
        with safe_open(self.folder / self.tensors[name].file, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def write_shard(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    value: Callable[[StoredTensor], Tensor],
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
) -> Iterator[StoredTensor]:
    """Writes one safetensors file, a tensor at a time, and yields each as soon as it is written.

    Args:
        path: the file.
        tensors: what it is to hold, as the source has it.
        value: gives a tensor's value, of the source's shape and of the dtype that is to be written.
        dtype: what floating-point tensors become; None leaves each as it is.
        metadata: for the header.
    """
    written = [_as_dtype(tensor, path.name, dtype) for tensor in tensors.values()]
    entries = [(tensor.name, tensor.dtype_name, tensor.shape, tensor.nbytes) for tensor in written]
    with path.open("wb") as file:
        file.write(packed_header(entries, metadata))
        for source, target in zip(tensors.values(), written, strict=True):
            data = value(source).detach().contiguous().flatten().view(torch.uint8).numpy()
            if data.nbytes != target.nbytes:
                raise AssertionError(f"{target.name}: {data.nbytes} bytes to write, {target.nbytes} announced")
            file.write(data.data)
            yield target
        file.flush()
        os.fsync(file.fileno())


def _as_dtype(tensor: StoredTensor, file: str, dtype: torch.dtype | None) -> StoredTensor:
    if dtype is None or tensor.dtype is None:
        return StoredTensor(tensor.name, file, tensor.dtype_name, tensor.shape, tensor.nbytes)
    nbytes = tensor.nbytes // tensor.dtype.itemsize * dtype.itemsize
    return StoredTensor(tensor.name, file, DTYPE_NAMES[dtype], tensor.shape, nbytes)


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / INDEX
    if not path.is_file():
        if (folder / SINGLE).is_file():
            return None
        others = sorted(p.name for p in folder.glob("*.bin"))
        advice = f"; it holds {others[0]}, a pickle, which weft does not read" if others else ""
        raise FormatError(
            f"{folder} holds neither {SINGLE} nor {INDEX}{advice}. Load the model with transformers and save it with "
            "save_pretrained, which writes safetensors"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map = index["weight_map"]
        plain = all(isinstance(k, str) and isinstance(v, str) and Path(v).name == v for k, v in weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not an index of safetensors files: {error!r}") from error
    if not plain:
        raise FormatError(f"{path} names files outside its folder")
    return dict(index)


def _read_header(folder: Path, file: str) -> tuple[list[StoredTensor], dict[str, str]]:
    path = folder / file
    try:
        with safe_open(path, "pt"):  # checks the whole header against the file's size
            pass
        with path.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    except FileNotFoundError:
        raise FormatError(f"there is no {path}, which {INDEX} names; fetch the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged or no safetensors file: {error}; fetch it again") from error
    metadata = header.pop("__metadata__", {})
    found = [
        (entry["data_offsets"], StoredTensor(
            name, file, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]
        ))
        for name, entry in header.items()
    ]  # fmt: skip
    return [tensor for _, tensor in sorted(found, key=lambda each: each[0])], metadata
