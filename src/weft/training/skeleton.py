"""A base without its weights: the model's shape for planning, and the files for merging into them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from weft.errors import ConfigError
from weft.model.shards import Checkpoint
from weft.model.stored import StoredModel, stored_models
from weft.training.base import checked_path, reason

# The model classes that a configuration's `architectures` may name; the first that knows the configuration is
# taken where it names none of them.
_AUTO_CLASSES = (
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForSeq2SeqLM,
    transformers.AutoModelForSequenceClassification,
    transformers.AutoModelForTokenClassification,
    transformers.AutoModelForQuestionAnswering,
    transformers.AutoModelForMaskedLM,
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForSpeechSeq2Seq,
    transformers.AutoModelForCTC,
    transformers.AutoModelForImageClassification,
    transformers.AutoModelForAudioClassification,
    transformers.AutoModel,
)
_NOT_FETCHED = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*/*.safetensors"]


def load_skeleton(name: str | Path, setting: str = "base") -> PreTrainedModel:
    """The model of a base on the meta device: every module and shape, no weights, no memory.

    Its class is the one that the configuration names.

    Args:
        name: a folder, a hub id, or ``bundled``.
        setting: what messages call it.

    Raises:
        ConfigError: there is no such folder, or transformers cannot build what is there; the message says why.
    """
    path = checked_path(name, setting)
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = _auto_class(config).from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{setting}: transformers cannot build the model of {path!r}: {reason(error)}") from error
    return model.eval()


def base_folder(name: str | Path, setting: str = "base") -> Path:
    """The folder with a base's files: the folder itself, or what the hub holds under this name, fetched if need be.

    Args:
        name: a folder, a hub id, or ``bundled``.
        setting: what messages call it.

    Raises:
        ConfigError: there is no such folder, and the hub did not give it; the message says why.
    """
    path = checked_path(name, setting)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, ignore_patterns=_NOT_FETCHED))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: {path!r} is no folder here, and fetching it from the hub failed: {reason(error)}"
        ) from error


def parameter_names(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Which parameter or buffer of the model each stored tensor is; those that are none as they stand are left out.

    transformers renames some tensors as it loads them, and makes others of several stored ones; the latter have
    no counterpart.

    Args:
        model: the model, on any device.
        keys: the names of the stored tensors.

    Returns:
        key -> name.
    """
    expected = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
        if name not in expected:  # as transformers does: a key that is no worse off without renaming
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, expected)
        if name in expected and pattern is None:
            names[key] = name
    return names


@stored_models.register("transformers")
def stored_model(name: str | Path, setting: str = "base") -> StoredModel:
    """A model on disk.

    Args:
        name: a folder, a hub id, or ``bundled``.
        setting: what messages call it.

    Raises:
        ConfigError: there is no such folder, or transformers cannot build what is there; the message says why.
        FormatError: no safetensors files, or damaged ones.
    """
    folder = base_folder(name, setting)
    checkpoint = Checkpoint.open(folder)
    model = load_skeleton(folder, setting)
    return StoredModel(str(name), model, checkpoint, parameter_names(model, checkpoint.tensors))


def _auto_class(config: PreTrainedConfig) -> Any:
    known = [auto for auto in _AUTO_CLASSES if type(config) in auto._model_mapping]
    named = config.architectures or []
    for auto in known:
        classes = auto._model_mapping[type(config)]
        if any(c is not None and c.__name__ in named for c in (classes if isinstance(classes, tuple) else (classes,))):
            return auto
    if not known:
        raise ValueError(f"no model class is known for {type(config).__name__}")
    return known[0]
