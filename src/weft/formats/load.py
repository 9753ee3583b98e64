"""Reading an adapter from whatever format it is in."""

from pathlib import Path

from weft.adapter import Adapter, file_formats
from weft.errors import FormatError


def load(path: str | Path) -> Adapter:
    """The adapter at `path`; its format is recognised from what stands there.

    Nothing is unpickled, and no code is run because a file names it.

    Raises:
        FormatError: there is nothing, no known format, or a file that is not what it says.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"there is no adapter at {path}: no such file or folder")
    for name in file_formats:
        if file_formats[name].recognises(path):
            return file_formats[name].load(path)
    known = ", ".join(file_formats)
    raise FormatError(
        f"{path} holds no adapter in a format that weft reads ({known}); expected adapter_config.json there, "
        "pytorch_lora_weights.safetensors, or a .safetensors file of diffusers or ComfyUI"
    )
