"""Tiny diffusion pipelines of the well-known architectures, with random weights, and pictures to go with them.

Every class, and every kind of layer, is that of the real pipeline; widths and depths are the smallest that it takes.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from tokenizers import AddedToken
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_START, _END = "<|startoftext|>", "<|endoftext|>"
SIZE = 32  # of the pictures, and of what the pipelines draw unasked


def stable_diffusion(prediction: str = "epsilon") -> StableDiffusionPipeline:
    """As Stable Diffusion 1.5; with ``prediction="v_prediction"``, as 2.1."""
    torch.manual_seed(0)
    text = _text_config(projection=None)
    return StableDiffusionPipeline(
        vae=_autoencoder(latent_channels=4),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=SIZE // 2,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            norm_num_groups=4,
            cross_attention_dim=text.hidden_size,
        ).eval(),
        scheduler=DDIMScheduler(
            **_NOISE, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """As SDXL: two text encoders, linear projections around the attention, sizes among the conditions."""
    torch.manual_seed(0)
    first, second, sizes = _text_config(projection=None), _text_config(projection=12), 6 * 4
    return StableDiffusionXLPipeline(
        vae=_autoencoder(latent_channels=4),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=SIZE // 2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            attention_head_dim=(2, 4),
            norm_num_groups=4,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + sizes,
            cross_attention_dim=first.hidden_size + second.hidden_size,
        ).eval(),
        scheduler=EulerDiscreteScheduler(**_NOISE, steps_offset=1, timestep_spacing="leading"),
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3 without its third text encoder: a transformer that learns a flow."""
    torch.manual_seed(0)
    first, second = _text_config(projection=16), _text_config(projection=16)
    return StableDiffusion3Pipeline(
        vae=_autoencoder(latent_channels=8, shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        text_encoder_3=None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=None,
        transformer=SD3Transformer2DModel(
            sample_size=SIZE // 2,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=32,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def clip_tokenizer(words: Sequence[str] = (), max_length: int = 77) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind: the given words are one token each, all else is read sign by sign."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), _START, _END]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=max_length)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return tokenizer


def draw_pictures(folder: Path, count: int = 5, size: int = SIZE) -> None:
    """Draws one thing, a red disc with a blue square on it, before another background each time."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for number in range(count):
        picture = Image.new("RGB", (size, size), tuple(chance.randrange(256) for _ in range(3)))
        draw = ImageDraw.Draw(picture)
        left, top = (chance.randrange(size // 3) for _ in range(2))
        draw.ellipse((left, top, left + size // 2, top + size // 2), fill=(200, 30, 30))
        draw.rectangle((left + size // 6, top + size // 6, left + size // 3, top + size // 3), fill=(30, 30, 200))
        picture.save(folder / f"{number:02}.png")


def _text_config(projection: int | None) -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection or 16,
        hidden_act="gelu" if projection else "quick_gelu",
    )


def _autoencoder(latent_channels: int, shift_factor: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=SIZE,
        shift_factor=shift_factor,
    ).eval()
