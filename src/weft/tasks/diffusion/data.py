"""Pictures as a denoiser learns them: latents with the number of their caption, made once before training."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from weft.data.images import ImageReport, Picture, read_picture, square
from weft.errors import DataError
from weft.tasks.diffusion.pipeline import Pipeline

Row = dict[str, Tensor]  # latents (channels, height, width), prompt (), geometry (4)


class LatentDataset(Dataset[list[Row]]):
    """Latents in memory. An item is a list of rows: a picture, and one of its class if there are such.

    Args:
        rows: the pictures to learn.
        report: what became of them.
        priors: pictures of the class. The larger set is gone through once, the smaller as often as that takes.
    """

    def __init__(self, rows: list[Row], report: ImageReport, priors: Sequence[Row] = ()) -> None:
        self.rows, self.report, self.priors = rows, report, priors

    def __len__(self) -> int:
        return max(len(self.rows), len(self.priors))

    def __getitem__(self, index: int) -> list[Row]:
        priors = [self.priors[index % len(self.priors)]] if self.priors else []
        return [self.rows[index % len(self.rows)], *priors]


class LatentCollator:
    """Batches of items: the pictures, and then those of the class; the weights of the former sum to 1.

    Args:
        prior_weight: of the loss on pictures of the class.
    """

    def __init__(self, prior_weight: float = 1.0) -> None:
        self._prior_weight = prior_weight

    def __call__(self, items: list[list[Row]]) -> dict[str, Tensor]:
        rows = [item[place] for place in range(len(items[0])) for item in items]
        weight = torch.full((len(rows),), self._prior_weight / len(items))
        weight[: len(items)] = 1 / len(items)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"weight": weight}


def encode_pictures(
    pictures: Sequence[Picture], pipeline: Pipeline, prompts: Sequence[str], resolution: int, flip: bool, seed: int
) -> tuple[list[Row], ImageReport]:
    """Reads pictures and encodes them, one at a time.

    Args:
        pictures: whose captions are among `prompts`.
        pipeline: whose autoencoder is used.
        prompts: every caption; a row has its number.
        resolution: the side of the square that is encoded, in pixels.
        flip: encode each one mirrored too.
        seed: of the samples from the autoencoder's posterior.

    Raises:
        DataError: a picture cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    rows: list[Row] = []
    enlarged = 0
    for picture in pictures:
        cut = square(read_picture(picture.path), resolution)
        enlarged += min(cut.size) < resolution
        for pixels in [cut.pixels, cut.pixels.flip(-1)] if flip else [cut.pixels]:
            latents = pipeline.latents(pixels[None], generator)[0]
            if not latents.isfinite().all():
                raise DataError(f"{picture.path}: the base's autoencoder makes numbers of it that are not finite")
            rows.append(
                {
                    "latents": latents,
                    "prompt": torch.tensor(numbers[picture.caption]),
                    "geometry": torch.tensor([*cut.size, *cut.corner]),
                }
            )
    captions = len({picture.caption for picture in pictures})
    return rows, ImageReport(len(pictures), captions, enlarged, resolution)


def hold_out(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """The rest, and a share chosen at random by the seed, one picture at least.

    Raises:
        DataError: there are fewer than two pictures.
    """
    if len(pictures) < 2:
        raise DataError("one picture cannot be split into training and evaluation; give eval, or leave out eval_share")
    count = min(max(1, round(share * len(pictures))), len(pictures) - 1)
    held = set(random.Random(seed).sample(range(len(pictures)), count))
    return [p for i, p in enumerate(pictures) if i not in held], [pictures[i] for i in sorted(held)]
