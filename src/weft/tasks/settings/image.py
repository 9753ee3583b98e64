"""The settings of runs on pictures: a text-to-image pipeline learns what a few pictures show."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from weft.config import LoRAConfig
from weft.errors import ConfigError
from weft.training.config import RunConfig, run_settings

if TYPE_CHECKING:
    from weft.training.task import Task

ATTENTION = "attention"
_DENOISER = r"re:(unet|transformer)\..*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_TEXT_ENCODERS = r"re:text_encoder(_2)?\..*\.(q_proj|k_proj|v_proj|out_proj)"


@run_settings.register("image")
class ImageRun(RunConfig):
    """A diffusers pipeline learns what a few pictures show, with the loss of DreamBooth (Ruiz et al., 2022)."""

    paths: ClassVar[tuple[str, ...]] = (*RunConfig.paths, "class_pictures")

    task: Literal["image"] = Field("image", description="What is learned.")
    base: str = Field(
        description="The base: a diffusers pipeline's folder, or its hub id. Stable Diffusion 1 and 2, SDXL, SD 3."
    )
    stand_in: str = Field(
        "stable-diffusion-1.5", description="What stands in for the base with --tiny: stable-diffusion-1.5, -xl or -3."
    )
    train: str = Field(
        description="Pictures: a folder of them, alone or with a metadata.jsonl or .csv; or a table of files and "
        "captions."
    )
    targets: str | tuple[str, ...] = Field(
        ATTENTION,
        description="The modules to adapt: attention (its projections to_q, to_k, to_v and to_out.0, and those of the "
        "text encoders if they are trained); all-linear, which adds feed-forward and time layers; all-layers, which "
        "adds the convolutions; or patterns (a name, a glob, or re:REGEX).",
    )

    instance_prompt: str | None = Field(
        None,
        description="What every picture shows, with a rare word for what is new: 'a photo of sks dog'. Default: each "
        "picture's own caption.",
    )
    image_column: str = Field("file_name", description="The column of pictures' files, in a table of pictures.")
    caption_column: str = Field("text", description="The column of captions.")
    resolution: int = Field(
        512, ge=16, multiple_of=8, description="The side of the middle square that is learned, in pixels."
    )
    flip: bool = Field(False, description="Learn each picture mirrored too.")
    train_text_encoder: bool = Field(False, description="Adapt the CLIP text encoders too.")

    prior_preservation: bool = Field(
        False, description="Keep what the base knows of the class, by learning pictures of it that the base made."
    )
    class_prompt: str | None = Field(None, description="The instance prompt without its rare word: 'a photo of a dog'.")
    class_pictures: str | None = Field(
        None, description="A folder of pictures of the class. Default: made by the base, in the run's folder."
    )
    num_class_pictures: int = Field(100, ge=1, description="Pictures of the class that the base makes.")
    prior_weight: float = Field(1.0, ge=0, description="The weight of the loss on pictures of the class.")

    eval_timesteps: int = Field(
        10, ge=1, description="Noise levels, evenly spread, at which the loss of each held-out picture is taken."
    )
    validation_prompts: tuple[str, ...] = Field(
        (), description="Prompts to draw at each evaluation, one a row. Default: the first caption."
    )
    validation_pictures: int = Field(4, ge=0, description="Pictures of each such prompt; 0 draws none.")
    sampling_steps: int = Field(25, ge=1, description="Denoising steps of each picture that is drawn.")
    guidance_scale: float = Field(
        7.5, ge=0, description="How far drawing goes beyond the unconditional prediction (Ho and Salimans, 2022)."
    )

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.prior_preservation and self.class_prompt is None:
            raise ConfigError("prior_preservation needs class_prompt, such as 'a photo of a dog'")
        if not self.prior_preservation and self.class_pictures is not None:
            raise ConfigError("class_pictures are learned with prior_preservation only; turn it on, or leave them out")
        if self.quantize != "none":
            raise ConfigError(f"quantize: a pipeline cannot be held in {self.quantize}; leave it out, or set bf16")
        return self

    def lora(self) -> LoRAConfig:
        """The configuration of the adapter."""
        config = super().lora()
        if self.targets != ATTENTION:
            return config
        patterns = (_DENOISER, _TEXT_ENCODERS) if self.train_text_encoder else (_DENOISER,)
        return LoRAConfig.from_dict(config.to_dict() | {"targets": patterns})

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of pictures."""
        from weft.tasks.image import ImageTask

        return ImageTask
