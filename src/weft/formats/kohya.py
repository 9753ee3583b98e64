"""kohya's LoRA file, one .safetensors, as ComfyUI and AUTOMATIC1111 read it; diffusers reads it too.

``<name>.lora_down.weight``, ``<name>.lora_up.weight`` and ``<name>.alpha`` for each module; the scaling is alpha / r,
and 1 where there is no alpha. See `weft.formats.kohya_names` for the names.
"""

import math
from pathlib import Path

from torch import Tensor

from weft.adapter import Adapter, file_formats
from weft.errors import FormatError
from weft.formats.image_pairs import exact_alpha, module_path, names_in, plain_pairs, read_adapter, save_file, shaped
from weft.formats.kohya_names import PREFIXES, kohya_name, stored_module
from weft.formats.peft_metadata import read_own_facts
from weft.formats.tensor_file import read_tensors

_SIDES = {"lora_down.weight": "A", "lora_up.weight": "B"}


class KohyaFormat:
    """Adapters of a Stable Diffusion pipeline's parts, in one file that ComfyUI reads."""

    def recognises(self, path: Path) -> bool:
        """A .safetensors file whose names begin with ``lora_unet_`` or ``lora_te``."""
        return any(name.startswith(tuple(PREFIXES)) for name in names_in(path))

    def save(self, adapter: Adapter, path: Path) -> Path:
        """Writes the file `path`, whose name ends with .safetensors.

        Raises:
            FormatError: another name, an adapter that the file cannot hold, or the disk did not take it.
        """
        if path.suffix != ".safetensors":
            raise FormatError(f"the kohya format is one file: give a name that ends with .safetensors, found {path}")
        parts = tuple(dict.fromkeys(PREFIXES.values()))
        pairs = plain_pairs(adapter, "ComfyUI", parts)
        two = any(module.startswith("text_encoder_2.") for module in pairs)
        tensors: dict[str, Tensor] = {}
        modules: dict[str, str] = {}
        scaling: dict[str, float] = {}
        for module, pair in pairs.items():
            name = kohya_name(module, two)
            if name in modules:
                raise FormatError(f"{module} and {modules[name]} would both be called {name} in a file for ComfyUI")
            modules[name] = module
            exact, alpha = adapter.factors[module].scaling, exact_alpha(adapter.factors[module].scaling, pair.rank)
            if float(alpha) / pair.rank != exact:
                scaling[module] = exact
            tensors |= {f"{name}.lora_down.weight": pair.A, f"{name}.lora_up.weight": pair.B, f"{name}.alpha": alpha}
        save_file(adapter, path, tensors, scaling, modules)
        return path

    def load(self, path: Path) -> Adapter:
        """Reads the file.

        Raises:
            FormatError: it is damaged, or holds something other than plain LoRA; all such things are named.
        """
        tensors, metadata = read_tensors(path)
        own = read_own_facts(metadata, path)
        problems: list[str] = []
        halves: dict[str, dict[str, Tensor]] = {}
        alphas: dict[str, float] = {}
        for key, tensor in tensors.items():
            name, _, field = key.partition(".")
            stored = stored_module(name)
            if stored is None:
                problems.append(f"{key}: expected a name that begins with {', '.join(PREFIXES)}")
                continue
            module = own.modules.get(name) or module_path(stored, own, has_transformer=False)
            if field == "alpha" and tensor.numel() == 1:
                alphas[module] = float(tensor)
            elif field not in _SIDES:
                problems.append(f"{key}: it is no part of a plain LoRA ({', '.join(_SIDES)}, alpha)")
            elif (problem := shaped(key, tensor)) is not None:
                problems.append(problem)
            else:
                if _SIDES[field] in halves.setdefault(module, {}):
                    problems.append(f"{key}: a second {field} of {module}")
                halves[module][_SIDES[field]] = tensor
        problems += [f"{module}: found alpha, and no factors" for module in alphas.keys() - halves.keys()]
        scaling = {
            module: alphas[module] / pair["A"].shape[0]
            for module, pair in halves.items()
            if alphas.get(module) and "A" in pair  # kohya's reader takes 0, too, for the rank
        }
        for module, exact in own.scaling.items():
            if module in scaling and math.isclose(exact, scaling[module], rel_tol=1e-12):
                scaling[module] = exact
        return read_adapter(path, halves, scaling, own, problems)


file_formats.register("kohya")(KohyaFormat())
