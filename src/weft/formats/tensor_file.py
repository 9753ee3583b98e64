"""safetensors files: 8 bytes with the length of a JSON header, the header, and the tensors' bytes.

Reading is the safetensors library's. Writing is done here, because the library writes the header's metadata
in another order each time: the same adapter must give the same bytes. It also leaves the disk's own error
(no space, say) to be seen as what it is, and holds one tensor's bytes at a time.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.errors import FormatError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NUMBER = re.compile(r"(\d+)")
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; the same tensors and metadata always give the same bytes.

    Args:
        path: the file.
        tensors: name -> tensor of any shape and device.
        metadata: name -> text for the header.

    Raises:
        FormatError: a dtype that cannot be stored, or a tensor that reads back other than it was written.
        OSError: the disk did not take it.
    """
    unknown = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES]
    if unknown:
        raise FormatError(f"a safetensors file cannot hold {', '.join(unknown)}; convert them first")
    # The widest first, so that each starts at a multiple of its own item's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, natural_order(name)))
    entries = [(name, DTYPE_NAMES[t.dtype], t.shape, t.nbytes) for name, t in ((n, tensors[n]) for n in names)]
    with path.open("wb") as file:
        file.write(packed_header(entries, metadata))
        for name in names:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
    _check(path, tensors)


def packed_header(entries: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors: the header's length and the header.

    Args:
        entries: name, dtype as the format names it, shape, and bytes of each tensor, in the order of the file.
        metadata: name -> text.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape, nbytes in entries:
        start, end = end, end + nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, copied to memory in natural order of their names, and its metadata.

    Raises:
        FormatError: it is not a safetensors file, or not a whole one.
    """
    try:
        # Opening it checks the whole header against the file's size.
        with safe_open(path, framework="pt") as checked, path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            metadata, start = header.pop("__metadata__", {}), file.tell()
            tensors = {
                name: _read(file, start, header[name])
                if header[name]["dtype"] in _DTYPES
                else checked.get_tensor(name).clone()
                for name in sorted(header, key=natural_order)
            }
            return tensors, metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(
            f"{path} is not a whole safetensors file ({error}); it was cut short or damaged, fetch or save it again"
        ) from error


def _read(file: BufferedReader, start: int, entry: Mapping[str, Any]) -> Tensor:
    """One tensor, in memory of its own: over a mapped file it would change, or crash, when that is rewritten.

    The library would map the file and make each tensor of a slice of it, which takes longer than reading it.
    """
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    data = bytearray(end - begin)
    file.seek(start + begin)
    if file.readinto(data) != end - begin:
        raise OSError("it became shorter while it was read")
    return torch.frombuffer(data, dtype=dtype).view(shape)


def natural_order(name: str) -> list[str | int]:
    """A sorting key that puts layer 2 before layer 10."""
    parts: list[str | int] = [*_NUMBER.split(name)]  # text and numbers, in turn
    parts[1::2] = map(int, parts[1::2])
    return parts


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises FormatError unless the names, shapes and dtypes in the file are those of `tensors`."""
    found, _ = read_tensors(path)
    wrong = [
        name
        for name in sorted(found.keys() | tensors.keys())
        if name not in found
        or name not in tensors
        or found[name].shape != tensors[name].shape
        or found[name].dtype != tensors[name].dtype
    ]
    if wrong:
        raise FormatError(f"{path} does not hold what was written to it: {', '.join(wrong[:5])}; is the disk sound?")
