"""The loss of a denoiser, and the noise that it learns to take away.

For latents x, noise e and a level t, the denoiser sees a mixture x_t and is to say what made it:

| the scheduler's kind | x_t | what is predicted |
|---|---|---|
| diffusion, ``epsilon`` (Ho et al., 2020) | a x + b e, with a^2 + b^2 = 1 | e |
| diffusion, ``v_prediction`` (Salimans and Ho, 2022) | the same | a e - b x |
| flow (Lipman et al., 2023; Esser et al., 2024) | (1 - s) x + s e | e - x |

The loss is the mean squared error. DreamBooth (Ruiz et al., 2022, arXiv 2208.12242) adds that on pictures of the class,
which the base made itself, with a weight.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from weft.errors import ConfigError
from weft.tasks.diffusion.pipeline import Conditions, Pipeline


class Noise(ABC):
    """The noise of a pipeline's scheduler, as it was trained; levels are numbered from 0 up to `levels`."""

    levels: int

    @abstractmethod
    def draw(self, rows: int) -> Tensor:
        """Levels at random, (rows), int64, from torch's generator on the CPU."""

    @abstractmethod
    def timesteps(self, levels: Tensor) -> Tensor:
        """What the denoiser is told of each level, (n)."""

    @abstractmethod
    def mixed(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x_t: latents with noise, each at its level; all (n, channels, height, width)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What is to be predicted."""


class Diffusion(Noise):
    """A scheduler with betas; levels are its training steps, all equally likely.

    Raises:
        ConfigError: it predicts neither the noise nor v.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.levels = int(self.scheduler.config.num_train_timesteps)
        self.prediction = str(self.scheduler.config.prediction_type)
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"base: its scheduler's prediction_type is {self.prediction!r}; weft trains 'epsilon' and "
                "'v_prediction'"
            )

    def draw(self, rows: int) -> Tensor:
        return torch.randint(self.levels, (rows,))

    def timesteps(self, levels: Tensor) -> Tensor:
        return levels

    def mixed(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        x_t: Tensor = self.scheduler.add_noise(latents, noise, levels)
        return x_t

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        v: Tensor = noise if self.prediction == "epsilon" else self.scheduler.get_velocity(latents, noise, levels)
        return v


class Flow(Noise):
    """A flow-matching scheduler; levels are the places in its table of sigmas, those in the middle the likeliest.

    The middle is where the prediction is hardest: a level is the sigmoid of a normal (Esser et al., 2024, section 3.1).
    """

    def __init__(self, scheduler: Any) -> None:
        fresh = type(scheduler).from_config(scheduler.config)  # a pipeline that has drawn has other sigmas
        self.levels = len(fresh.timesteps)
        self._timesteps, self._sigmas = fresh.timesteps.float(), fresh.sigmas[: self.levels].float()

    def draw(self, rows: int) -> Tensor:
        return (torch.randn(rows).sigmoid() * self.levels).long().clamp(max=self.levels - 1)

    def timesteps(self, levels: Tensor) -> Tensor:
        return self._timesteps.to(levels.device)[levels]

    def mixed(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        sigma = self._sigmas.to(latents.device)[levels].reshape(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return noise - latents


def noise_of(scheduler: Any) -> Noise:
    """The noise that a pipeline's scheduler stands for."""
    return Diffusion(scheduler) if "beta_schedule" in scheduler.config else Flow(scheduler)


class DenoisingLoss(nn.Module):
    """The parts of a pipeline that may learn, under their names in it, and their loss.

    Args:
        pipeline: whose parts they are: the denoiser, and the text encoders if they learn.
        prompts: every caption there is; rows name theirs by its number. Where the text encoders do not learn, what
            they make of each is computed here, once.
        train_text_encoder: whether they learn.
    """

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], train_text_encoder: bool = False) -> None:
        super().__init__()
        self.noise = noise_of(pipeline.pipe.scheduler)
        self._pipeline, self._prompts = pipeline, list(prompts)
        for name in (pipeline.denoiser, *(pipeline.text_encoders if train_text_encoder else ())):
            self.add_module(name, pipeline.part(name).requires_grad_(True))
        self._conditions: Conditions | None = None
        if not train_text_encoder:
            with torch.no_grad():
                self._conditions = pipeline.encode(self._prompts)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._pipeline.device

    def forward(self, latents: Tensor, prompt: Tensor, geometry: Tensor, weight: Tensor) -> Mapping[str, Tensor]:
        """The weighted sum of the rows' errors, at levels and with noises drawn from torch's generator on the CPU.

        Args:
            latents, prompt, geometry: see `errors`.
            weight: of each row, (n).
        """
        levels, noise = self.noise.draw(len(latents)), torch.randn(latents.shape)
        return {"loss": (weight * self.errors(latents, prompt, geometry, levels, noise)).sum()}

    def errors(self, latents: Tensor, prompt: Tensor, geometry: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the prediction in each row, (n), float32.

        Args:
            latents: (n, channels, height, width).
            prompt: the number of each row's caption, (n).
            geometry: see `Pipeline.predict`, (n, 4).
            levels: of the noise, (n).
            noise: (n, channels, height, width).
        """
        levels, noise = levels.to(latents.device), noise.to(latents)
        dtype = next(self._pipeline.part(self._pipeline.denoiser).parameters()).dtype
        noisy = self.noise.mixed(latents, noise, levels).to(dtype)
        conditions = {name: value.to(dtype) for name, value in self._conditions_of(prompt).items()}
        predicted = self._pipeline.predict(noisy, self.noise.timesteps(levels), conditions, geometry)
        squares = (predicted.float() - self.noise.target(latents, noise, levels)).square()  # (n, c, h, w)
        return squares.flatten(1).mean(1)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Computes activations again in the backward pass, as the Trainer asks; never by reentering.

        Raises:
            ConfigError: only some layers are to be computed again, or the rest to be kept elsewhere.
        """
        if every_n_layers != 1 or offload:
            raise ConfigError("a pipeline's activations are computed again for every block, and nothing is offloaded")
        for name, part in self.named_children():
            if name == self._pipeline.denoiser:
                part.enable_gradient_checkpointing()  # type: ignore[operator] # diffusers' models have it
            else:
                part.activation_checkpointing_enable(activation_checkpointing_kwargs)  # type: ignore[operator]

    def _conditions_of(self, prompt: Tensor) -> Conditions:
        """Of each row; each caption is encoded once."""
        distinct, places = prompt.unique(return_inverse=True)
        if self._conditions is None:
            encoded = self._pipeline.encode([self._prompts[number] for number in distinct.tolist()])
            return {name: value[places] for name, value in encoded.items()}
        return {name: value[prompt.to(value.device)] for name, value in self._conditions.items()}
