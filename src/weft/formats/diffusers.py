"""diffusers' LoRA file, pytorch_lora_weights.safetensors, as `pipe.load_lora_weights` reads it.

Keys are ``<part>.<path>.lora_A.weight`` and ``lora_B.weight``, where a part is a pipeline's, such as ``unet``; those of
a text encoder are ``lora_linear_layer.down.weight`` and ``up.weight``. Without anything else in the file every reader,
of any age, adds B A itself: the scaling is multiplied into B when saving, and a loaded adapter has scaling 1.

Read too are diffusers' older spellings, and ranks and alphas in the header as its own training scripts write them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weft.adapter import Adapter, file_formats
from weft.errors import FormatError
from weft.formats.image_pairs import (
    module_path,
    names_in,
    plain_pairs,
    read_adapter,
    save_file,
    shaped,
    stored_path,
)
from weft.formats.peft_config import PeftScaling
from weft.formats.peft_metadata import read_own_facts
from weft.formats.tensor_file import read_tensors

WEIGHTS = "pytorch_lora_weights.safetensors"
PARTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
_HEADER = "lora_adapter_metadata"
_KEY = re.compile(
    r"(?P<path>.+?)\.(?:processor\.)?(?:"
    r"lora_(?P<peft>A|B)|lora\.(?P<unet>down|up)|lora_linear_layer\.(?P<text>down|up)|"
    r"(?P<old>to_[qkv]|to_out)_lora\.(?P<old_side>down|up))\.weight"
)
_SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class DiffusersFormat:
    """Adapters of a diffusers pipeline's parts, in one file that diffusers reads."""

    def recognises(self, path: Path) -> bool:
        """A folder with the file in it, or a .safetensors file whose keys begin with a pipeline's part."""
        if path.is_dir():
            return (path / WEIGHTS).is_file()
        return path.name == WEIGHTS or any(
            name.partition(".")[0] in PARTS and ".lora" in name.replace("_lora", ".lora") for name in names_in(path)
        )

    def save(self, adapter: Adapter, path: Path) -> Path:
        """Writes `path`, a .safetensors file, or pytorch_lora_weights.safetensors in the folder `path`.

        Raises:
            FormatError: the file cannot hold this adapter, or the disk did not take it.
        """
        tensors: dict[str, Tensor] = {}
        modules: dict[str, str] = {}
        for module, pair in plain_pairs(adapter, "diffusers", PARTS).items():
            stored = stored_path(module)
            modules[stored] = module
            names = (
                ("lora_linear_layer.down", "lora_linear_layer.up")
                if module.startswith("text_encoder")
                else ("lora_A", "lora_B")
            )
            scaling = adapter.factors[module].scaling
            for name, factor in zip(names, (pair.A, pair.B if scaling == 1 else scaling * pair.B), strict=True):
                tensors[f"{stored}.{name}.weight"] = factor
        save_file(adapter, path if path.suffix == ".safetensors" else path / WEIGHTS, tensors, {}, modules)
        return path

    def load(self, path: Path) -> Adapter:
        """Reads the file, or the one in the folder `path`.

        Raises:
            FormatError: it is damaged, or holds something other than plain LoRA; all such things are named.
        """
        file = path / WEIGHTS if path.is_dir() else path
        tensors, metadata = read_tensors(file)
        own = read_own_facts(metadata, file)
        problems: list[str] = []
        halves: dict[str, dict[str, Tensor]] = {}
        alphas: dict[str, float] = {}
        has_transformer = any(key.startswith("transformer") for key in tensors)
        for key, tensor in tensors.items():
            match = _KEY.fullmatch(key)
            if key.endswith(".alpha") and tensor.numel() == 1:
                alphas[module_path(key.removesuffix(".alpha"), own, has_transformer)] = float(tensor)
            elif match is None or key.partition(".")[0] not in PARTS:
                problems.append(f"{key}: it is no plain LoRA of a pipeline's part ({', '.join(PARTS)})")
            elif (problem := shaped(key, tensor)) is not None:
                problems.append(problem)
            else:
                module = module_path(_spelled_today(match), own, has_transformer)
                side = _SIDES[match["peft"] or match["unet"] or match["text"] or match["old_side"]]
                if side in halves.setdefault(module, {}):
                    problems.append(f"{key}: a second lora_{side} of {module}")
                halves[module][side] = tensor
        problems += [f"{module}: found alpha, and no factors" for module in alphas.keys() - halves.keys()]
        scaling = {
            module: alphas[module] / pair["A"].shape[0]
            for module, pair in halves.items()
            if module in alphas and "A" in pair
        }
        scaling |= _header_scaling(metadata, halves, file, problems)
        return read_adapter(file, halves, scaling, own, problems)


def _spelled_today(match: re.Match[str]) -> str:
    """The module that a key names, in any of diffusers' spellings."""
    path, old = match["path"], match["old"]
    if old is None:
        return path
    if path.startswith("text_encoder"):
        return f"{path}.{_OLD_TEXT[old]}"
    return f"{path}.to_out.0" if old == "to_out" else f"{path}.{old}"


def _header_scaling(
    metadata: Mapping[str, str], halves: Mapping[str, Mapping[str, Tensor]], file: Path, problems: list[str]
) -> dict[str, float]:
    """module path -> scaling, by the header that diffusers' training scripts write: PEFT's fields, for each part."""
    if _HEADER not in metadata:
        return {}
    try:
        fields = dict(json.loads(metadata[_HEADER]))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{file}: {_HEADER} in its header is no JSON object: {error}") from error
    found: dict[str, float] = {}
    for part in PARTS:
        own: dict[str, Any] = {
            key.removeprefix(f"{part}."): value for key, value in fields.items() if key.startswith(f"{part}.")
        }
        if own.get("use_dora"):
            problems.append(f"{part}: use_dora is on, and weft reads plain LoRA from this format")
        if not own:
            continue
        scaling_of = PeftScaling({"r": 8, "lora_alpha": 8} | {key: own[key] for key in own if own[key] is not None})
        for module, pair in halves.items():
            if module.partition(".")[0] == part and "A" in pair:
                try:
                    found[module] = scaling_of(module.partition(".")[2], pair["A"].shape[0])
                except ValueError as error:
                    problems.append(str(error))
    return found


file_formats.register("diffusers")(DiffusersFormat())
