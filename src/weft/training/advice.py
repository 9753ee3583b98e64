"""Advice on rank, learning rate and length of a run, each from a published rule."""

import math

from torch import nn
from transformers import PreTrainedModel

from weft.model import plan
from weft.training.config import RunConfig
from weft.training.distance import Advice

_BITS_PER_PARAMETER = 2.0  # what a language model stores: Allen-Zhu and Li, 2024, arXiv 2404.05405
_BITS_PER_TOKEN = 2.0  # what a learned token tells at most, beyond what the base knows
_SHORT = 100  # steps below which a run is short
_STEPS, _EPOCHS = 300, 5  # wanted at least, and passes at most
_POWERS = {"qwen2": 0.0775, "qwen3": 0.0775}  # of the width, by family; Llama's for the others
_LLAMA = 0.781


def advise(config: RunConfig, model: nn.Module, *, rows: int, label_tokens: int, loss: float) -> list[Advice]:
    """What the size of the data and of the base say about a run.

    Args:
        config: the run's settings.
        model: its base, without adapters.
        rows: training rows.
        label_tokens: learned tokens in them.
        loss: the base's, in nats per learned token.
    """
    steps = max(1, round(rows / (config.batch_size * config.gradient_accumulation)))
    epochs = min(_EPOCHS, max(1, math.ceil(_STEPS / steps)))
    given = config.epochs if config.max_steps is None else config.max_steps / steps
    advice = [_rank(config, model, label_tokens, loss)]
    if isinstance(model, PreTrainedModel):
        advice.append(_learning_rate(config, model, steps * epochs))
    reason = f"an epoch is {steps:,} steps; {_STEPS} or more let a rate rise and fall"
    reason += (
        f", and after {_EPOCHS} passes (as Hu et al., 2021, made on E2E) rows are learned by heart"
        if epochs > 1
        else ""
    )
    return [*advice, Advice("epochs", epochs, round(given, 2), reason)]


def _rank(config: RunConfig, model: nn.Module, label_tokens: int, loss: float) -> Advice:
    """The least power of two whose parameters hold what the data tell."""
    planned = plan(model, config.lora())
    width = sum(sum(module.shape) for module in planned.modules if module.shares is None)  # parameters of a rank of 1
    largest = min((min(module.shape) for module in planned.modules), default=1)
    bits = label_tokens * min(_BITS_PER_TOKEN, loss / math.log(2))
    wanted = bits / _BITS_PER_PARAMETER / max(1, width)
    rank = min(2 ** max(0, math.ceil(math.log2(max(wanted, 1)))), 2 ** int(math.log2(largest)))
    reason = (
        f"{label_tokens:,} learned tokens tell at most about {bits:,.0f} bits, and {rank * width:,} parameters hold "
        f"{_BITS_PER_PARAMETER * rank * width:,.0f} (2 bits each: Allen-Zhu and Li, 2024); LoRA falls behind full "
        "fine-tuning where the data tell more than it holds (Schulman et al., 2025)"
    )
    return Advice("rank", rank, config.rank, reason)


def _learning_rate(config: RunConfig, model: PreTrainedModel, steps: int) -> Advice:
    """Schulman et al.'s fit over fourteen bases: ten times full fine-tuning's, higher for narrow bases."""
    settings = model.config.get_text_config()
    power = _POWERS.get(settings.model_type, _LLAMA)
    times = 15 if steps < _SHORT else 10
    rate = 5e-5 * times * (2000 / settings.hidden_size) ** power
    rounded = float(f"{rate:.1e}")
    reason = (
        f"{times} times full fine-tuning's 5e-5 * (2000 / width)^{power:g}, for a base of width "
        f"{settings.hidden_size:,}, at any rank (Schulman et al., 2025)"
    )
    return Advice("learning_rate", rounded, config.learning_rate, reason)
