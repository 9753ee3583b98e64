"""What only weft knows of an adapter, as JSON in the header of its safetensors file, under the key "weft".

PEFT's readers, and those of diffusers and ComfyUI, do not look there, so nothing disturbs them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from weft.adapter import Adapter
from weft.config import LoRAConfig
from weft.errors import ConfigError, FormatError
from weft.fingerprint import Fingerprint
from weft.formats.peft_config import PeftScaling
from weft.formats.peft_keys import Pair


@dataclass(frozen=True)
class OwnFacts:
    """What weft wrote into the file for itself.

    Attributes:
        config: the adapter's configuration.
        base: the base's fingerprint.
        provenance: as it was.
        scaling: module path -> scaling, of those that no alpha gives exactly.
        modules: name in the file -> module path, where the file has names of its own.
    """

    config: LoRAConfig | None = None
    base: Fingerprint | None = None
    provenance: Mapping[str, Any] | None = None
    scaling: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)


def own_facts(adapter: Adapter, scaling: Mapping[str, float], modules: Mapping[str, str] | None = None) -> str:
    """The JSON; `scaling` and `modules` as in `OwnFacts`.

    Raises:
        FormatError: the provenance or a setting is no plain value.
    """
    values = {
        "version": version("weft"),
        "config": adapter.config.to_dict(),
        "base": None if adapter.base is None else adapter.base.to_dict(),
        "provenance": dict(adapter.provenance),
        "scaling": dict(scaling),
        **({} if modules is None else {"modules": dict(modules)}),
    }
    try:
        return json.dumps(values)
    except TypeError as error:
        raise FormatError(f"the adapter's provenance and settings must be plain values: {error}") from error


def inexact_scaling(adapter: Adapter, pairs: Mapping[str, Pair], config: Mapping[str, Any]) -> dict[str, float]:
    """The scaling of the modules for which PEFT computes another one from its configuration, by a rounding."""
    scaling_of = PeftScaling(config)
    return {
        module: value.scaling
        for module, value in adapter.factors.items()
        if scaling_of(module, pairs[module].rank) != value.scaling
    }


def read_own_facts(metadata: Mapping[str, str], path: Path) -> OwnFacts:
    if "weft" not in metadata:
        return OwnFacts()
    try:
        values = json.loads(metadata["weft"])
        return OwnFacts(
            config=LoRAConfig.from_dict(values["config"]),
            base=None if values["base"] is None else Fingerprint.from_dict(values["base"]),
            provenance=dict(values["provenance"]),
            scaling={str(module): float(scaling) for module, scaling in values["scaling"].items()},
            modules={str(name): str(path) for name, path in values.get("modules", {}).items()},
        )
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise FormatError(
            f"{path}: what weft wrote into its header cannot be read ({type(error).__name__}: {error}); it was made by "
            "another version of weft, or with an extension that is not loaded here"
        ) from error
