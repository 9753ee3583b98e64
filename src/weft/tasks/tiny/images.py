"""Stand-ins for pipelines that make pictures, and for pictures. diffusers is imported when one is made."""

from pathlib import Path
from typing import Any

from weft.tasks.tiny.registry import bases, data

_SMALL = {"resolution": 32, "sampling_steps": 2, "num_class_pictures": 4}


@bases.register("stable-diffusion-1.5")
def stable_diffusion_1_5(folder: Path) -> dict[str, Any]:
    """Stable Diffusion 1.5's UNet, CLIP text encoder and autoencoder."""
    from weft.tasks.tiny.pipelines import stable_diffusion

    stable_diffusion().save_pretrained(folder / "base")
    return {"base": folder / "base", **_SMALL}


@bases.register("stable-diffusion-xl")
def stable_diffusion_xl(folder: Path) -> dict[str, Any]:
    """SDXL's UNet, its two text encoders and autoencoder."""
    from weft.tasks.tiny.pipelines import stable_diffusion_xl

    stable_diffusion_xl().save_pretrained(folder / "base")
    return {"base": folder / "base", **_SMALL}


@bases.register("stable-diffusion-3")
def stable_diffusion_3(folder: Path) -> dict[str, Any]:
    """Stable Diffusion 3's transformer, two of its three text encoders and its autoencoder."""
    from weft.tasks.tiny.pipelines import stable_diffusion_3

    stable_diffusion_3().save_pretrained(folder / "base")
    return {"base": folder / "base", **_SMALL}


@data.register("image")
def pictures(folder: Path) -> dict[str, Any]:
    """Five pictures of one thing."""
    from weft.tasks.tiny.pipelines import draw_pictures

    draw_pictures(folder / "pictures")
    return {"train": folder / "pictures"}
