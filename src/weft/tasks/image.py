"""Pictures: a text-to-image pipeline learns what a few pictures show, with DreamBooth's loss (Ruiz et al., 2022)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from torch import Tensor, nn

from weft.config import LoRA
from weft.data.images import Picture, find_pictures
from weft.formats import load
from weft.model.new_folder import new_folder
from weft.model.state import has_state
from weft.tasks.diffusion.data import LatentCollator, LatentDataset, encode_pictures, hold_out
from weft.tasks.diffusion.grid import Artist
from weft.tasks.diffusion.loss import DenoisingLoss
from weft.tasks.diffusion.pipeline import Pipeline, load_pipeline
from weft.tasks.settings.image import ImageRun
from weft.training.mode import evaluating
from weft.training.task import Evaluation, Metric, Task


class ImageTask(Task):
    """A run on pictures. The autoencoder, and text encoders that do not learn, run once, before training."""

    metrics = (Metric("loss", "loss (squared error of the prediction)", "{:.5f}", greater_is_better=False),)
    config: ImageRun
    model: DenoisingLoss
    train_data: LatentDataset
    eval_data: LatentDataset | None

    def __init__(self, config: ImageRun, pipeline: Pipeline, pictures: list[Picture], held_out: list[Picture]) -> None:
        self.config, self._pipeline = config, pipeline
        classes = [config.class_prompt] if config.class_prompt is not None else []
        captions = [picture.caption for picture in (*pictures, *held_out)]
        self._prompts = list(dict.fromkeys([*captions, *classes]))
        self.model = DenoisingLoss(pipeline, self._prompts, config.train_text_encoder).eval()
        self.train_data = self._encoded(pictures, flip=config.flip)
        self.eval_data = self._encoded(held_out, flip=False) if held_out else None
        self.train_report = self.train_data.report
        self.eval_report = self.eval_data.report if self.eval_data else None
        self._artist = Artist(pipeline, config.resolution, config.sampling_steps, config.guidance_scale)

    @classmethod
    def open(cls, config: ImageRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        pictures = _find(config, config.train)
        if config.eval is not None:
            held_out = _find(config, config.eval)
        elif config.eval_share is not None:
            pictures, held_out = hold_out(pictures, config.eval_share, config.seed)
        else:
            held_out = []
        pipeline = load_pipeline(config.base, torch.bfloat16 if config.bf16 else torch.float32)
        if config.train_text_encoder:
            config = config.model_copy(update={"exclude": tuple(dict.fromkeys((*config.exclude, *pipeline.unused)))})
        return cls(config, pipeline, pictures, held_out)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return LatentCollator(self.config.prior_weight)

    def evaluate(self) -> Evaluation:
        """The loss at noise levels and with noises that are always the same, and a grid of pictures."""
        assert self.eval_data is not None
        generator = torch.Generator().manual_seed(0)
        count = self.config.eval_timesteps
        levels = (torch.arange(count) + 0.5) / count * self.model.noise.levels
        total = 0.0
        with evaluating(self.model):
            for row in self.eval_data.rows:
                for part in levels.long().split(self.config.batch_size):
                    batch = {name: torch.stack([value] * len(part)) for name, value in row.items()}
                    noise = torch.randn(batch["latents"].shape, generator=generator)
                    on_device = {name: value.to(self.model.device) for name, value in batch.items()}
                    total += float(self.model.errors(**on_device, levels=part, noise=noise).double().sum())
        return Evaluation(
            rows=len(self.eval_data.rows),
            scores={"loss": total / (len(self.eval_data.rows) * count)},
            picture=self._grid(),
        )

    @contextmanager
    def session(self, scratch: Path, console: Console | None) -> Iterator[None]:
        """With ``prior_preservation``, the pictures of the class; those that nobody gave are drawn first."""
        alone = self.train_data
        if self.config.prior_preservation:
            priors = self._encoded(self._class_pictures(scratch, console), flip=False)
            self.train_data = LatentDataset(alone.rows, alone.report, priors.rows)
        yield
        self.train_data = alone

    def save_beside(self, folder: Path) -> None:
        """The adapter as diffusers and ComfyUI read it; without held-out pictures, also a grid of what it draws."""
        if has_state(self.model) and _is_plain(self.config):  # nothing is attached where the whole base learned
            adapter = load(folder)
            adapter.save(folder, format="diffusers")
            if self._pipeline.denoiser == "unet":
                adapter.save(self._comfyui(folder), format="kohya")
        if self.eval_data is None and (picture := self._grid()) is not None:
            picture.save(folder / "pictures.png")

    def usage(self, adapter: Path) -> str:
        base = self.config.base
        lines = [
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipe = DiffusionPipeline.from_pretrained({base!r})",
        ]
        if _is_plain(self.config):
            weights = "pytorch_lora_weights.safetensors"
            lines += [f"pipe.load_lora_weights({str(adapter)!r}, weight_name={weights!r})"]
        else:
            parts = ", ".join(repr(name) for name, _ in self.model.named_children())
            lines += [
                "import weft",
                "from weft.tasks.image import parts_of",
                "",
                f"weft.attach(parts_of(pipe, {parts}), weft.load({str(adapter)!r}))",
            ]
        lines += [f'pipe({self._prompts[0]!r}).images[0].save("picture.png")', "```"]
        if _is_plain(self.config) and self._pipeline.denoiser == "unet":
            lines += ["", f"For ComfyUI, copy `{self._comfyui(adapter)}` into `models/loras`."]
        return "\n".join(lines)

    def _encoded(self, pictures: list[Picture], flip: bool) -> LatentDataset:
        config = self.config
        return LatentDataset(
            *encode_pictures(pictures, self._pipeline, self._prompts, config.resolution, flip, config.seed)
        )

    def _grid(self) -> Any:
        """What is drawn now; None if nothing is to be."""
        if not self.config.validation_pictures:
            return None
        prompts = self.config.validation_prompts or self._prompts[:1]
        with evaluating(self.model):
            return self._artist.grid(prompts, self.config.validation_pictures)

    def _class_pictures(self, scratch: Path, console: Console | None) -> list[Picture]:
        """Those of the folder that is named; where it is not there, or none is named, the base draws them first.

        The adapter is attached by now. It is new, and changes nothing yet.
        """
        config, count = self.config, self.config.num_class_pictures
        folder = Path(config.class_pictures) if config.class_pictures is not None else scratch / "class_pictures"
        assert config.class_prompt is not None
        if not folder.exists():
            if console is not None:
                console.print(f"the base draws {count} pictures of {config.class_prompt!r}")
            with new_folder(folder) as fresh, evaluating(self.model):
                for start in range(0, count, config.batch_size):
                    seeds = range(start, min(start + config.batch_size, count))
                    for seed, picture in zip(seeds, self._artist.draw(config.class_prompt, seeds), strict=True):
                        picture.save(fresh / f"{seed:05}.png")
        return find_pictures(folder, config.class_prompt)

    def _comfyui(self, folder: Path) -> Path:
        """ComfyUI shows the name of the file."""
        return folder / f"{self.config.output.name}-comfyui.safetensors"


def parts_of(pipe: Any, *names: str) -> nn.ModuleDict:
    """Parts of a diffusers pipeline as one module, which an adapter of this task can be attached to.

    Args:
        pipe: any pipeline.
        names: those that the adapter was trained on: "unet" or "transformer", and the text encoders if they learned.
    """
    return nn.ModuleDict({name: pipe.components[name] for name in names})


def _find(config: ImageRun, source: str) -> list[Picture]:
    return find_pictures(
        source, config.instance_prompt, image_column=config.image_column, caption_column=config.caption_column
    )


def _is_plain(config: ImageRun) -> bool:
    """Whether the files of diffusers and ComfyUI can hold the adapter."""
    settings = config.lora()
    return type(settings.variant) is LoRA and settings.bias == "none" and not settings.train_modules
