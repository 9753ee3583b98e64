"""diffusers' pipelines as training sees them: what conditions their denoiser, and how that is called.

One class a family of pipelines; a family that is added is one more class, and its row in `FAMILIES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from weft.errors import ConfigError
from weft.training.base import checked_path, reason

Conditions = dict[str, Tensor]  # name -> (prompts, ...)


class Pipeline(ABC):
    """A pipeline of one family.

    Attributes:
        denoiser: the name of the part that learns: a UNet or a transformer.
        text_encoders: the names of the CLIP text encoders, which can learn too.
        pipe: diffusers' own object.
    """

    denoiser: ClassVar[str]
    text_encoders: ClassVar[tuple[str, ...]]

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def part(self, name: str) -> nn.Module:
        """One of the pipeline's models."""
        model: nn.Module = self.pipe.components[name]
        return model

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.part(self.denoiser).parameters()).device

    @property
    def unused(self) -> tuple[str, ...]:
        """Patterns of modules in the text encoders whose output nothing reads."""
        return ()

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """What the text encoders make of prompts; gradients reach them."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, geometry: Tensor) -> Tensor:
        """The denoiser's output.

        Args:
            noisy: latents, (n, channels, height, width).
            timesteps: as the scheduler has them, (n).
            conditions: those of each row, (n, ...).
            geometry: each picture's height and width as it was read, and its square's top and left, (n, 4).
        """

    @torch.no_grad()
    def latents(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Samples from the autoencoder's posterior, scaled as the denoiser takes them.

        Args:
            pixels: (n, 3, height, width), from -1 to 1.
            generator: what the samples are drawn from, on the CPU.
        """
        vae: Any = self.part("vae")
        weight = next(vae.parameters())
        posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        drawn = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        sample = posterior.mean + posterior.std * drawn
        scaled: Tensor = (sample - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        return scaled.float().cpu()


class StableDiffusion(Pipeline):
    """Stable Diffusion 1 and 2 (Rombach et al., 2022): a UNet that attends to CLIP's states."""

    denoiser, text_encoders = "unet", ("text_encoder",)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        states, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return {"states": states}  # (n, tokens, width)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, geometry: Tensor) -> Tensor:
        output: Tensor = self.part("unet")(
            noisy, timesteps, encoder_hidden_states=conditions["states"], return_dict=False
        )[0]
        return output


class StableDiffusionXL(Pipeline):
    """SDXL (Podell et al., 2023): two text encoders, and the picture's size and crop as conditions."""

    denoiser, text_encoders = "unet", ("text_encoder", "text_encoder_2")

    @property
    def unused(self) -> tuple[str, ...]:
        """The last block of the first text encoder: the states before it are taken."""
        last = self.pipe.text_encoder.config.num_hidden_layers - 1
        return (rf"re:text_encoder\.(text_model\.)?encoder\.layers\.{last}\..*",)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, geometry: Tensor) -> Tensor:
        side = torch.tensor(noisy.shape[-2:], device=noisy.device) * self.pipe.vae_scale_factor
        sizes = torch.cat([geometry, side.expand(len(noisy), 2)], dim=1).to(noisy.dtype)  # (n, 6)
        output: Tensor = self.part("unet")(
            noisy,
            timesteps,
            encoder_hidden_states=conditions["states"],
            added_cond_kwargs={"text_embeds": conditions["pooled"], "time_ids": sizes},
            return_dict=False,
        )[0]
        return output


class StableDiffusion3(Pipeline):
    """Stable Diffusion 3 (Esser et al., 2024): a transformer over pictures and text together."""

    denoiser, text_encoders = "transformer", ("text_encoder", "text_encoder_2")

    def encode(self, prompts: Sequence[str]) -> Conditions:
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, geometry: Tensor) -> Tensor:
        output: Tensor = self.part("transformer")(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditions["states"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]
        return output


FAMILIES: dict[str, type[Pipeline]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
}


def load_pipeline(name: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Loads a pipeline, in evaluation mode, to the GPU if there is one.

    Args:
        name: a folder, or a hub id.
        dtype: of all parts but the autoencoder, which stays in float32.

    Raises:
        ConfigError: there is none, diffusers cannot load it, or it is of no family here.
    """
    path = checked_path(name)
    logging.disable_progress_bar()
    try:
        index = DiffusionPipeline.load_config(path)
        kind = index["_class_name"]
        if kind not in FAMILIES:
            raise ConfigError(f"base: {path!r} is a {kind}; weft trains {', '.join(FAMILIES)}")
        absent: dict[str, Any] = {
            name: None for name, value in index.items() if isinstance(value, list) and value[:1] == [None]
        }
        if "safety_checker" in index:  # what is drawn here is the user's own subject
            absent |= {"safety_checker": None, "requires_safety_checker": False}
        pipe = DiffusionPipeline.from_pretrained(path, dtype={"default": dtype, "vae": torch.float32}, **absent)
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"base: diffusers cannot load {path!r} as a pipeline: {reason(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
            part.eval()
    return FAMILIES[kind](pipe)
