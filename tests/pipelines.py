"""Tiny diffusers pipelines under adapters, and what they compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import weft
from weft.tasks.tiny import pipelines

PIPELINES: dict[str, Callable[[], Any]] = {
    "sd15": pipelines.stable_diffusion,
    "sdxl": pipelines.stable_diffusion_xl,
    "sd3": pipelines.stable_diffusion_3,
}
PROMPT = "a photo of sks dog"
# Each kind of layer that a pipeline has: attention, feed-forward, 3x3 and 1x1 convolutions, time embedding, CLIP.
EVERY_KIND = {
    "sd15": ("to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in", "time_emb_proj",
             "re:text_encoder.*(q_proj|out_proj|fc1)"),
    "sdxl": ("to_k", "to_out.0", "ff.net.0.proj", "conv1", "conv_shortcut", "proj_out", "linear_1", "conv_in",
             "re:text_encoder.*(k_proj|fc2)"),
    "sd3": ("to_q", "add_k_proj", "to_out.0", "ff.net.2", "re:text_encoder.*v_proj"),
}  # fmt: skip


def parts_of(pipeline: Any, *names: str) -> nn.ModuleDict:
    """Parts of a pipeline, all that can be adapted if none is named, as one module; the very same objects."""
    known = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return nn.ModuleDict({name: pipeline.components[name] for name in names or known if pipeline.components.get(name)})


def trained(kind: str, rank: int = 3, alpha: float = 6.0, targets: tuple[str, ...] = ()) -> tuple[Any, weft.Adapter]:
    """A pipeline with an adapter whose factors are random on it, and the adapter."""
    pipeline = PIPELINES[kind]()
    config = weft.LoRAConfig(rank=rank, alpha=alpha, targets=targets or EVERY_KIND[kind])
    parts = weft.attach(parts_of(pipeline), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in weft.trainable_parameters(parts):
            nn.init.normal_(parameter, std=0.2)
    return pipeline, weft.collect(parts)


@torch.no_grad()
def computed(pipeline: Any) -> Tensor:
    """What a pipeline's text encoders and denoiser make of one prompt and of noise."""
    pipeline.set_progress_bar_config(disable=True)
    output: Tensor = pipeline(
        PROMPT, num_inference_steps=2, guidance_scale=1.5, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    return output
