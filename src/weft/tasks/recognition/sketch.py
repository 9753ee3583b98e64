"""A run of a speech recognizer without its values: what planning its memory needs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import WhisperConfig

from weft.memory import Sketch
from weft.tasks.settings.speech import SpeechRun
from weft.training.skeleton import load_skeleton


def speech_sketch(config: SpeechRun, samples: int | None, tokens: int | None = None) -> Sketch | None:
    """The base and the largest batch of a run of a speech recognizer, on the meta device.

    Args:
        config: the settings; `bf16` decides the dtype of the weights.
        samples: in the longest clip. A Whisper needs none: it always hears its whole window.
        tokens: that a Whisper's decoder reads at most; by default as many as it holds.

    Returns:
        None for a base with a CTC head and no samples given.

    Raises:
        ConfigError: transformers cannot build the base.
    """
    model = load_skeleton(config.base)
    settings, rows = model.config, config.batch_size
    dtype = torch.bfloat16 if config.bf16 is True else torch.float32
    nn.Module.to(model, dtype)
    if isinstance(settings, WhisperConfig):
        settings.use_cache = False
        ids = torch.empty(rows, tokens or settings.max_target_positions, dtype=torch.int64, device="meta")
        heard = torch.empty(rows, settings.num_mel_bins, 2 * settings.max_source_positions, dtype=dtype, device="meta")
        return Sketch(model, {"input_features": heard, "decoder_input_ids": ids, "labels": ids})
    if samples is None:
        return None
    settings.layerdrop = 0.0
    settings.apply_spec_augment = False  # which frames it masks is drawn outside of torch
    return Sketch(model, {"input_values": torch.empty(rows, samples, dtype=dtype, device="meta")}, _ctc_loss)


def with_weights_of(sketch: Sketch, model: nn.Module) -> Sketch:
    """The sketch, with the bytes of a loaded base: a quantized one takes fewer than its dtype says."""
    return replace(sketch, weights=sum(each.nbytes for each in (*model.parameters(), *model.buffers())))


def _ctc_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """As much memory as the loss takes, which reads how long the transcripts are: log p of every frame."""
    logits: Tensor = model(**batch).logits
    return logits.log_softmax(-1, dtype=torch.float32).sum()
