"""The denoiser's loss against diffusers' own schedulers and pipelines."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from pipelines import PIPELINES
from torch import Tensor

from weft.errors import ConfigError
from weft.tasks.diffusion.data import LatentCollator, LatentDataset
from weft.tasks.diffusion.loss import DenoisingLoss, Diffusion, noise_of
from weft.tasks.diffusion.pipeline import FAMILIES, Pipeline
from weft.tasks.tiny.pipelines import stable_diffusion

PROMPTS = ["a photo of sks dog", "a photo of a dog"]


def opened(kind: str) -> Pipeline:
    pipe = PIPELINES[kind]()
    return FAMILIES[type(pipe).__name__](pipe)


def batch(channels: int = 4, rows: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        "latents": torch.randn(rows, channels, 16, 16),
        "prompt": torch.tensor([0, 1, 0][:rows]),
        "geometry": torch.tensor([[32, 40, 0, 4]] * rows),
    }


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_is_what_diffusers_takes_the_noise_away_with(prediction: str) -> None:
    pipe: Any = stable_diffusion(prediction)
    noise = noise_of(pipe.scheduler)
    x, e = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    for level in (0, 400, 999):
        at = torch.tensor([level])
        clean = scheduler.step(noise.target(x, e, at), level, noise.mixed(x, e, at)).pred_original_sample
        assert torch.allclose(clean, x, atol=2e-4)  # float32, over a signal of a fifteenth at the last level


def test_following_a_perfect_flow_ends_at_the_picture() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise = noise_of(scheduler)
    x, e = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    scheduler.set_timesteps(sigmas=[1 - level / noise.levels for level in range(0, noise.levels, 125)])
    sample = noise.mixed(x, e, torch.tensor([0]))
    assert torch.equal(sample, e)  # the first level is noise alone
    for place, timestep in enumerate(scheduler.timesteps):
        level = torch.tensor([125 * place])
        assert torch.allclose(timestep, noise.timesteps(level), rtol=1e-5)
        assert torch.allclose(sample, noise.mixed(x, e, level), atol=1e-5)
        sample = scheduler.step(noise.target(x, e, level), timestep, sample).prev_sample
    assert torch.allclose(sample, x, atol=1e-5)


def test_levels_are_drawn_as_the_kind_of_noise_has_them() -> None:
    torch.manual_seed(0)
    for kind, middle in (("sd15", 0.5), ("sd3", 0.73)):  # a share of all levels; of normal ones within a deviation
        noise = noise_of(PIPELINES[kind]().scheduler)
        levels = noise.draw(20_000)
        assert 0 <= int(levels.min()) < int(levels.max()) < noise.levels
        share = ((levels >= noise.levels / 4) & (levels < noise.levels * 3 / 4)).float().mean()
        assert abs(float(share) - middle) < 0.02


def test_what_a_pipeline_predicts_when_it_draws_is_what_is_trained() -> None:
    """The first call of each pipeline's denoiser, while it draws without guidance, is `predict`'s."""
    for kind in PIPELINES:
        pipeline = opened(kind)
        seen: dict[str, Any] = {}
        part = pipeline.part(pipeline.denoiser)
        hook = part.register_forward_hook(
            lambda _, args, given, output, seen=seen: seen.update(args=args, given=given, output=output[0]) or None,
            with_kwargs=True,
        )
        pipeline.pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(0)
        pipeline.pipe(PROMPTS[0], num_inference_steps=1, guidance_scale=1.0, height=32, width=32, output_type="latent")
        hook.remove()
        given = seen["given"]
        noisy = given["hidden_states"] if "hidden_states" in given else seen["args"][0]
        timestep = given["timestep"] if "timestep" in given else seen["args"][1]
        with torch.no_grad():
            found = pipeline.predict(
                noisy, timestep.expand(1), pipeline.encode(PROMPTS[:1]), torch.tensor([[32, 32, 0, 0]])
            )
        assert torch.allclose(found, seen["output"], rtol=1e-5, atol=1e-6), kind


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_loss_of_text_encoders_that_learn_is_that_of_what_they_made_before(kind: str) -> None:
    pipeline = opened(kind)
    given = batch(channels=8 if kind == "sd3" else 4)
    drawn = {"levels": torch.tensor([10, 500, 900]), "noise": torch.randn_like(given["latents"])}
    before = DenoisingLoss(pipeline, PROMPTS).errors(**given, **drawn)
    live = DenoisingLoss(pipeline, PROMPTS, train_text_encoder=True)
    assert torch.allclose(live.errors(**given, **drawn), before, rtol=1e-5)
    swapped = given | {"prompt": 1 - given["prompt"]}
    assert not torch.allclose(live.errors(**swapped, **drawn), before, rtol=1e-5)
    assert [name for name, _ in live.named_children()] == [pipeline.denoiser, *pipeline.text_encoders]


def test_the_loss_is_dreambooths() -> None:
    """The mean over the pictures, and that over those of the class with its weight."""
    loss = DenoisingLoss(opened("sd15"), PROMPTS)
    rows = [{name: value[place] for name, value in batch().items()} for place in range(3)]
    data = LatentDataset(rows[:2], None, [rows[2] | {"prompt": torch.tensor(1)}])  # type: ignore[arg-type]
    collated = LatentCollator(prior_weight=0.3)([data[0], data[1]])
    torch.manual_seed(5)
    found = loss(**collated)["loss"]
    torch.manual_seed(5)
    levels, noise = loss.noise.draw(4), torch.randn(4, 4, 16, 16)
    errors = loss.errors(collated["latents"], collated["prompt"], collated["geometry"], levels, noise)
    assert torch.allclose(found, errors[:2].mean() + 0.3 * errors[2:].mean())
    assert collated["prompt"].tolist() == [0, 1, 1, 1]


def test_the_larger_set_is_gone_through_once() -> None:
    rows = [{"latents": torch.tensor(float(place))} for place in range(5)]
    data = LatentDataset(rows[:2], None, rows[2:])  # type: ignore[arg-type]
    assert [[float(row["latents"]) for row in data[place]] for place in range(len(data))] == [[0, 2], [1, 3], [0, 4]]


def test_the_sizes_of_a_picture_condition_sdxl() -> None:
    loss = DenoisingLoss(opened("sdxl"), PROMPTS)
    given = batch()
    drawn = {"levels": torch.tensor([10, 500, 900]), "noise": torch.randn_like(given["latents"])}
    other = given | {"geometry": given["geometry"] * 2}
    assert not torch.equal(loss.errors(**given, **drawn), loss.errors(**other, **drawn))


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        loss = DenoisingLoss(opened("sd15"), PROMPTS, train_text_encoder=True).train()
        if checkpointing:
            loss.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        loss(**batch(), weight=torch.ones(3))["loss"].backward()
        gradients.append([parameter.grad for parameter in loss.parameters()])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert sum(gradient is not None for gradient in gradients[1]) > 100


def test_another_kind_of_prediction_is_refused() -> None:
    with pytest.raises(ConfigError, match="prediction_type is 'sample'"):
        Diffusion(DDPMScheduler(prediction_type="sample"))
