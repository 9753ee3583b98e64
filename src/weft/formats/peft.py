"""The folder that PEFT reads and writes: adapter_model.safetensors, adapter_config.json and a model card.

What only weft knows (its own configuration, the base's fingerprint, where the adapter came from) stands as
JSON under the key "weft" in the header of adapter_model.safetensors, where PEFT does not look. Loading takes
that where it is there; ranks and scalings always come from the tensors and from adapter_config.json.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weft.adapter import Adapter, file_formats
from weft.config import DoRA, LoRA, LoRAConfig
from weft.errors import FormatError
from weft.formats.atomic import staged_files
from weft.formats.peft_card import MARK, model_card
from weft.formats.peft_config import PeftScaling, lora_config, path_patterns, peft_config, read_peft_config
from weft.formats.peft_keys import Pair, companion_key, peft_keys, peft_pair, peft_tensor_key, understand
from weft.formats.peft_metadata import inexact_scaling, own_facts, read_own_facts
from weft.formats.tensor_file import read_tensors, write_tensors
from weft.linalg import LowRank
from weft.patterns import first_match

CONFIG, WEIGHTS, PICKLE, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"


class PeftFormat:
    """Adapters as PEFT has them on disk."""

    def recognises(self, path: Path) -> bool:
        """A folder with one of PEFT's files in it or in a subfolder, or one of those files."""
        if path.is_file():
            return path.name in (CONFIG, WEIGHTS, PICKLE)
        return _holds(path) or bool(_named(path))

    def save(self, adapter: Adapter, path: Path) -> Path:
        """Writes the folder.

        Raises:
            FormatError: PEFT cannot hold this adapter, or the disk did not take it.
        """
        pairs = _pairs(adapter)
        whole = _whole_modules(adapter)
        tensors = {key: tensor for module, pair in pairs.items() for key, tensor in peft_keys(module, pair).items()}
        tensors |= {peft_tensor_key(key, adapter.factors): tensor for key, tensor in adapter.tensors.items()}
        if not tensors and not adapter.companions:
            raise FormatError("the adapter holds no tensors; there is nothing to save")
        unreadable = understand(tensors).problems
        if unreadable:
            raise FormatError("some tensors could not be read again:\n  " + "\n  ".join(unreadable))
        tensors |= {companion_key(key): tensor for key, tensor in adapter.companions.items()}
        config = peft_config(adapter, {module: pair.rank for module, pair in pairs.items()}, whole)
        metadata = {"format": "pt", "weft": own_facts(adapter, inexact_scaling(adapter, pairs, config))}

        card = path / CARD
        ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
        theirs = card.exists() and not ours
        names = [*([] if theirs else [CARD]), WEIGHTS, CONFIG]
        with staged_files(path, names) as folder:
            if not theirs:
                (folder / CARD).write_text(model_card(adapter), encoding="utf-8")
            write_tensors(folder / WEIGHTS, tensors, metadata)
            (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path

    def load(self, path: Path) -> Adapter:
        """Reads the folder, a subfolder of it if that is where the only adapter is, or the folder of one of its files.

        Raises:
            FormatError: something is missing, damaged, or beyond LoRA and DoRA; all such things are named.
        """
        folder = _folder(path)
        values = read_peft_config(folder / CONFIG)
        tensors, metadata = read_tensors(folder / WEIGHTS)
        own = read_own_facts(metadata, folder / WEIGHTS)
        found = understand(tensors)
        problems = list(found.problems)
        names = [companion.name for companion in own.config.companions] if own.config is not None else []
        problems += [
            f"{key}: a companion that no configuration in this file names"
            for key in found.companions
            if key.split(".")[-2] not in names
        ]
        scaling_of = PeftScaling(values)
        factors: dict[str, LowRank] = {}
        for module, pair in found.pairs.items():
            try:
                scaling = scaling_of(module, pair.rank)
                exact = own.scaling.get(module)
                if exact is not None and math.isclose(exact, scaling, rel_tol=1e-12):
                    scaling = exact
                factors[module] = LowRank(pair.B, pair.A, scaling)
            except ValueError as error:  # ConfigError is one too
                problems.append(str(error))
        problems += _variant_problems(bool(values.get("use_dora")), found.pairs, own.config)
        whole = _found_whole(found.tensors, factors, values.get("modules_to_save") or [], problems)
        if problems:
            raise FormatError(
                f"{folder}: {len(problems)} of its {len(tensors)} tensors cannot be read:\n  " + "\n  ".join(problems)
            )
        if not tensors:
            raise FormatError(f"{folder / WEIGHTS} holds no tensors")
        return Adapter(
            config=own.config or lora_config(values, factors, whole),
            factors=factors,
            layouts={module: found.pairs[module].layout for module in factors},
            tensors=found.tensors,
            base=own.base,
            provenance=_provenance(values) if own.provenance is None else own.provenance,
            magnitudes={key: pair.magnitude for key, pair in found.pairs.items() if pair.magnitude is not None},
            companions=found.companions,
        )


def _pairs(adapter: Adapter) -> dict[str, Pair]:
    """The factor pairs as PEFT stores them.

    Raises:
        FormatError: a variant or layer kind that this format does not hold.
    """
    if type(adapter.config.variant) not in (LoRA, DoRA):
        raise FormatError(
            f"the PEFT format holds LoRA and DoRA, and this adapter's variant is {adapter.config.variant!r}; "
            "merge it into the base, or extract a plain LoRA from it"
        )
    pairs, problems = {}, []
    for module, value in adapter.factors.items():
        try:
            pairs[module] = peft_pair(value.A, value.B, adapter.layouts[module], adapter.magnitudes.get(module))
        except ValueError as error:
            problems.append(f"{module}: {error}")
    if problems:
        raise FormatError("the PEFT format cannot hold this adapter:\n  " + "\n  ".join(problems))
    return pairs


def _variant_problems(use_dora: bool, pairs: Mapping[str, Pair], own: LoRAConfig | None) -> Iterator[str]:
    """What does not go with `use_dora`: magnitudes that are there or not, and the variant that weft noted."""
    for module, pair in pairs.items():
        if use_dora and pair.magnitude is None:
            yield f"{module}: found no lora_magnitude_vector, which use_dora asks for"
        elif not use_dora and pair.magnitude is not None:
            yield f"{module}: found lora_magnitude_vector (DoRA), but use_dora in {CONFIG} is not true"
    if own is not None and isinstance(own.variant, DoRA) != use_dora:
        yield f"use_dora in {CONFIG} is {use_dora}, but the tensors were saved with variant={own.variant!r}"


def _outer_paths(key: str) -> list[str]:
    """The paths of the modules that a parameter stands in, outermost first."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _whole_modules(adapter: Adapter) -> list[str]:
    """The paths of the modules that the adapter trains whole.

    Raises:
        FormatError: a tensor that is neither of such a module nor a bias: nothing would read it again.
    """
    whole: dict[str, None] = {}
    strays = []
    for key in adapter.tensors:
        path = next((p for p in _outer_paths(key) if first_match(adapter.config.train_modules, p)), None)
        if path is not None:
            whole[path] = None
        elif not key.endswith(".bias") and key.removesuffix(".weight") not in adapter.factors:
            strays.append(key)
    if strays:
        raise FormatError(
            f"these tensors belong to no module that train_modules names: {', '.join(strays)}; "
            "add a pattern for them to the adapter's configuration"
        )
    return list(whole)


def _found_whole(
    tensors: Mapping[str, Tensor], factors: Mapping[str, LowRank], modules_to_save: list[str], problems: list[str]
) -> tuple[str, ...]:
    """Patterns for the modules that a PEFT file holds whole; notes tensors that are of no such module.

    PEFT takes every module whose path ends with one of `modules_to_save`, and stores an embedding or output head
    whole, unasked, where the vocabulary was resized.
    """
    whole: dict[str, None] = {}
    for key, tensor in tensors.items():
        hit = next(((p, end) for p in _outer_paths(key) for end in modules_to_save if p.endswith(end)), None)
        path, _, name = key.rpartition(".")
        if hit is not None:
            pattern = path_patterns([hit[1]])
            whole |= dict.fromkeys(pattern if first_match(pattern, hit[0]) else [hit[0]])
        elif name == "weight" and tensor.ndim == 2 and path not in factors:
            whole[path] = None
        elif not path or not (name == "bias" or (name == "weight" and path in factors)):
            problems.append(f"{key}: it is no factor, no bias, and of no module that modules_to_save names")
    return tuple(whole)


def _provenance(values: Mapping[str, Any]) -> dict[str, Any]:
    """The origin, as far as PEFT's file tells."""
    names = {
        "base": "base_model_name_or_path",
        "revision": "revision",
        "task_type": "task_type",
        "peft_version": "peft_version",
    }
    return {ours: values[theirs] for ours, theirs in names.items() if values.get(theirs)}


def _holds(folder: Path) -> bool:
    """Whether a folder holds one of PEFT's files; adapters.safetensors beside the configuration is mlx-lm's."""
    weights = any((folder / name).is_file() for name in (WEIGHTS, PICKLE))
    return weights or ((folder / CONFIG).is_file() and not (folder / "adapters.safetensors").exists())


def _named(folder: Path) -> list[Path]:
    """The subfolders with an adapter: PEFT saves an adapter that is not called "default" in one of its name."""
    return sorted(part for part in folder.iterdir() if part.is_dir() and part.name[:1] != "." and _holds(part))


def _folder(path: Path) -> Path:
    """The folder that holds the adapter's files, all of them there.

    Raises:
        FormatError: one is missing, or there are several adapters.
    """
    folder = path.parent if path.is_file() else path
    if not _holds(folder):
        named = _named(folder)
        if len(named) > 1:
            raise FormatError(f"{folder} holds several adapters; name one: {', '.join(map(str, named))}")
        folder = named[0]
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise FormatError(
            f"{folder / PICKLE} is a pickle: reading one can run code, so weft does not. If you trust where it "
            f"comes from, turn it into {WEIGHTS} once, in that folder: "
            'python -c "import torch; from safetensors.torch import save_file; '
            f"save_file({{k: v.clone() for k, v in torch.load('{PICKLE}', weights_only=True).items()}}, '{WEIGHTS}')\""
        )
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} holds no {name}; an adapter is that file and its companion, fetch both")
    return folder


file_formats.register("peft")(PeftFormat())
