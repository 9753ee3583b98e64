"""Checkpoints that hold the adapter alone: the raw tensors under training, bit for bit."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from weft.errors import BaseMismatchError, BindingError, FormatError, TrainingError
from weft.fingerprint import Fingerprint
from weft.model import base_fingerprint
from weft.model.modules import adapted_modules
from weft.model.state import state_of

STATE_FILE = "adapter_state.safetensors"
_TRAINER_STATE = "trainer_state.json"  # what transformers' Trainer writes last of all into a checkpoint


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the trainable adapters, buffers (such as an initializer's offset) too, by a unique name.

    The tensors are those of the model itself, not copies.
    """
    names = [name for name, record in state_of(model).adapters.items() if record.trainable]
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for path, module in adapted_modules(model):
        for name in names:
            if name not in module.adapters:
                continue
            for key, tensor in module.adapters[name].state_dict().items():
                if tensor.data_ptr() not in seen:  # modules that share a weight share their factors too
                    seen.add(tensor.data_ptr())
                    tensors[f"{path}:{name}:{key}"] = tensor
    return tensors


def save_state(model: nn.Module, folder: str | Path) -> None:
    """Writes the trainable adapters' tensors, and the fingerprint of their base, into a checkpoint folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in trained_tensors(model).items()}
    save_file(tensors, folder / STATE_FILE, {"base": json.dumps(base_fingerprint(model).to_dict())})


@torch.no_grad()
def load_state(model: nn.Module, folder: str | Path) -> None:
    """Reads them back, in place; all or nothing.

    Raises:
        FormatError: there is no such state in the folder, or the file is damaged.
        BaseMismatchError: the checkpoint was made on another base.
        BindingError: its tensors are not those of the attached adapters.
    """
    path = Path(folder) / STATE_FILE
    try:
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            base = Fingerprint.from_dict(json.loads(file.metadata()["base"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is no checkpoint of an adapter: {error}") from error
    difference = base.difference(base_fingerprint(model))
    if difference is not None:
        raise BaseMismatchError(f"{path} was made on another base: here, {difference}")
    expected = trained_tensors(model)
    wrong = [
        f"{key}: found {_shape(found.get(key))}, expected {_shape(expected.get(key))}"
        for key in sorted(found.keys() | expected.keys())
        if _shape(found.get(key)) != _shape(expected.get(key))
    ]
    if wrong:
        raise BindingError(f"{path} does not fit the attached adapters; nothing was loaded:\n  " + "\n  ".join(wrong))
    for key, tensor in found.items():
        expected[key].copy_(tensor)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer's state comes last, and half a JSON object is none."""
    try:
        json.loads((checkpoint / _TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / STATE_FILE).is_file()


def latest(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a folder, or None."""
    complete = [path for path in _checkpoints(Path(folder)) if is_complete(path)]
    return max(complete, key=step_of, default=None)


def remove_incomplete(folder: str | Path) -> None:
    """Deletes the checkpoints that a kill cut short."""
    for path in _checkpoints(Path(folder)):
        if not is_complete(path):
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def require_latest(folder: str | Path) -> Path:
    """`latest`, or a TrainingError if there is none."""
    found = latest(folder)
    if found is None:
        raise TrainingError(f"there is no complete checkpoint in {folder} to resume from")
    return found


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"({', '.join(map(str, tensor.shape))}) {tensor.dtype}"
