"""Pretrains a small text-to-image pipeline of Stable Diffusion's kind, from nothing, on a CPU.

    python recipes/small_diffusion/pretrain.py --output runs/small-diffusion --minutes 10
    weft train --task image --base runs/small-diffusion --train photos/dog --resolution 32 \\
        --instance-prompt "a photo of sks dog" --eval-share 0.4 --output runs/dog

It learns scenes that `scenes.py` draws, 32 pixels a side, and pictures of your own with --pictures FOLDER CAPTION (any
number of times). A quarter of the time goes to an autoencoder, which halves the sides; the rest to the UNet and the
text encoder, with the loss that `weft train --task image` has. Learning rates follow the clock.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from scenes import SIDE, WORDS, scene
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel

from weft.data.images import find_pictures, read_picture, square
from weft.tasks.diffusion.loss import DenoisingLoss
from weft.tasks.diffusion.pipeline import StableDiffusion
from weft.tasks.tiny.pipelines import clip_tokenizer

BATCH, PEAK, WARMUP = 16, 1e-3, 0.03  # the last one is a share of the time
OWN_SHARE = 0.25  # of the rows of a batch that are pictures of the user's, if there are any
UNCONDITIONAL = 0.1  # of the rows that learn without their caption, for guidance (Ho and Salimans, 2022)


def small_pipeline() -> StableDiffusionPipeline:
    """A UNet of 2.5 million parameters, a text encoder of 0.1 and an autoencoder of 0.2."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(WORDS, max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4, sample_size=SIDE,
            mid_block_add_attention=False,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=SIDE // 2, block_out_channels=(32, 64, 96), layers_per_block=1, cross_attention_dim=64,
            attention_head_dim=4, norm_num_groups=8, use_linear_projection=True,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def rows_of(scenes: int, own: list[list[str]]) -> tuple[Tensor, list[str], int]:
    """Pixels (n, 3, SIDE, SIDE) from -1 to 1, their captions, and how many of the last rows are the user's own."""
    chance = random.Random(0)
    drawn = [scene(chance) for _ in range(scenes)]
    pixels = [square(picture, SIDE).pixels for picture, _ in drawn]
    captions = [caption for _, caption in drawn]
    for folder, caption in own:
        for found in find_pictures(folder, caption):
            upright = square(read_picture(found.path), SIDE).pixels
            pixels += [upright, upright.flip(-1)]
            captions += [caption] * 2
    return torch.stack(pixels), captions, len(pixels) - scenes


def batches(rows: int, own: int, minutes: float, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Row numbers (BATCH) until the time is over, with the learning rate that the clock gives."""
    start, shares = time.monotonic(), []
    while not shares or shares[-1] < 1:
        shares.append((time.monotonic() - start) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, shares[-1] / WARMUP, max(0.0, (1 - shares[-1]) / 0.5))
        mine = int(BATCH * OWN_SHARE) if own else 0
        yield torch.cat([torch.randint(rows - own, (BATCH - mine,)), rows - 1 - torch.randint(max(1, own), (mine,))])
    print(f"{len(shares):,} steps")


def train_autoencoder(vae: AutoencoderKL, pixels: Tensor, own: int, minutes: float) -> None:
    """Absolute and squared error of the reconstruction, and a slight pull of the latents towards a normal."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK)
    loss = torch.zeros(())
    for rows in batches(len(pixels), own, minutes, optimizer):
        given = pixels[rows]
        posterior = vae.encode(given).latent_dist
        found = vae.decode(posterior.sample()).sample
        loss = (found - given).abs().mean() + (found - given).square().mean() + 1e-6 * posterior.kl().mean()
        step(loss, optimizer, vae)
    print(f"autoencoder: loss {loss:.4f}")
    with torch.no_grad():
        spread = vae.encode(pixels[:256]).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=float(1 / spread))


def train_denoiser(
    pipe: StableDiffusionPipeline, pixels: Tensor, captions: list[str], own: int, minutes: float
) -> None:
    """UNet and text encoder together, on latents that are made once."""
    pipeline = StableDiffusion(pipe)
    prompts = ["", *dict.fromkeys(captions)]
    numbers = torch.tensor([prompts.index(caption) for caption in captions])
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([pipeline.latents(part, generator) for part in pixels.split(64)])
    model = DenoisingLoss(pipeline, prompts, train_text_encoder=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01)
    parts = nn.ModuleDict(dict(model.named_children()))
    averaged = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    running = 0.0
    geometry = torch.zeros(BATCH, 4, dtype=torch.int64)  # SDXL's alone
    for count, rows in enumerate(batches(len(pixels), own, minutes, optimizer)):
        prompt = torch.where(torch.rand(BATCH) < UNCONDITIONAL, 0, numbers[rows])
        loss = model(latents[rows], prompt, geometry, torch.full((BATCH,), 1 / BATCH))["loss"]
        step(loss, optimizer, model)
        averaged.update_parameters(parts)
        running = loss.item() if not count else 0.99 * running + 0.01 * loss.item()
        if count % 250 == 0:
            print(f"step {count:,}: loss {running:.4f}", flush=True)
    trained = dict(parts.named_parameters())
    with torch.no_grad():
        for name, mean in averaged.module.named_parameters():
            trained[name].copy_(mean)


def step(loss: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """One step, with the gradient clipped."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--pictures", nargs=2, action="append", default=[], metavar=("FOLDER", "CAPTION"))
    options = parser.parse_args()
    pipe = small_pipeline()
    pixels, captions, own = rows_of(options.scenes, options.pictures)
    train_autoencoder(pipe.vae, pixels, own, options.minutes / 4)
    train_denoiser(pipe, pixels, captions, own, options.minutes * 3 / 4)
    pipe.save_pretrained(options.output)


if __name__ == "__main__":
    main()
