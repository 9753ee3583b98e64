"""Pictures that a pipeline draws."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from weft.tasks.diffusion.pipeline import Pipeline


class Artist:
    """Draws with a pipeline: a picture follows from its prompt and its seed.

    Args:
        pipeline: draws with the adapters that are active.
        resolution: of the pictures, in pixels a side.
        steps: denoising steps.
        guidance_scale: how far to go beyond the unconditional prediction.
    """

    def __init__(self, pipeline: Pipeline, resolution: int, steps: int, guidance_scale: float) -> None:
        self._pipeline, self._resolution = pipeline, resolution
        self._steps, self._guidance_scale = steps, guidance_scale

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        """A picture of the prompt for each seed."""
        pipe: Any = self._pipeline.pipe
        pictures: list[Image.Image] = pipe(
            prompt,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=self._steps,
            guidance_scale=self._guidance_scale,
            height=self._resolution,
            width=self._resolution,
        ).images
        return pictures

    def grid(self, prompts: Sequence[str], columns: int) -> Image.Image:
        """One row a prompt, one column a seed."""
        side = self._resolution
        sheet = Image.new("RGB", (columns * side, len(prompts) * side))
        for row, prompt in enumerate(prompts):
            for column, picture in enumerate(self.draw(prompt, range(columns))):
                sheet.paste(picture, (column * side, row * side))
        return sheet
