"""Stand-ins for speech recognizers, and for clips: tones for words."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from weft.tasks.tiny.registry import bases, data

END, START = "<|endoftext|>", "<|startoftranscript|>"
TASKS = ("<|translate|>", "<|transcribe|>")
NO_TIMESTAMPS = "<|notimestamps|>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
_RATE = 16_000
_TONES = {"low": 200.0, "middle": 500.0, "high": 1500.0}


def whisper_tokenizer() -> WhisperTokenizer:
    """Whisper's tokenizer with a token for each byte, and its special tokens in their order; no timestamps."""
    special = (END, START, *(f"<|{code}|>" for code in LANGUAGES), *TASKS, "<|startoflm|>", "<|startofprev|>")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special, "<|nospeech|>", NO_TIMESTAMPS]
    return WhisperTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        pad_token=END,
        additional_special_tokens=tokens[257:],  # END is one already
    )


def save_whisper(folder: Path, *, seconds: int, mel_bins: int, width: int, layers: tuple[int, int]) -> Path:
    """Writes a random Whisper with its processor and generation settings, and returns the folder.

    Args:
        folder: to be made.
        seconds: that its window holds.
        mel_bins: of its features.
        width: of its hidden states; a head has 32 of them.
        layers: of its encoder and its decoder.
    """
    tokenizer = whisper_tokenizer()
    features = WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=seconds)
    end, start = (tokenizer.get_vocab()[token] for token in (END, START))
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=mel_bins,
        d_model=width,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=width // 32,
        decoder_attention_heads=width // 32,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=features.nb_max_frames // 2,
        max_target_positions=64,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        max_length=config.max_target_positions,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={task.strip("<|>"): tokenizer.convert_tokens_to_ids(task) for task in TASKS},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids(NO_TIMESTAMPS),
    )
    model.save_pretrained(folder)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
    return folder


@bases.register("whisper")
def whisper(folder: Path) -> dict[str, Any]:
    """Whisper with a window of two seconds and a token for each byte."""
    return {"base": save_whisper(folder / "base", seconds=2, mel_bins=80, width=32, layers=(1, 1))}


@bases.register("wav2vec2")
def wav2vec2(folder: Path) -> dict[str, Any]:
    """wav2vec 2.0 with a CTC head over the letters."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *_LETTERS]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    vocabulary.unlink()
    config = Wav2Vec2Config(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        mask_time_length=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder / "base")
    features = Wav2Vec2FeatureExtractor(sampling_rate=_RATE, do_normalize=True, return_attention_mask=False)
    Wav2Vec2Processor(features, tokenizer).save_pretrained(folder / "base")
    return {"base": folder / "base"}


@data.register("speech")
def speech(folder: Path) -> dict[str, Any]:
    """Clips of one or two tones, laid out as Common Voice: a TSV file beside ``clips``."""
    (folder / "clips").mkdir()
    rows = [write_clip(folder / "clips" / f"{number}.wav", number) for number in range(12)]
    return {"train": write_table(folder / "train.tsv", rows), "eval": write_table(folder / "test.tsv", rows[:4])}


def write_clip(path: Path, number: int) -> dict[str, str]:
    """Writes a clip of tones in noise, and returns its row: the words for its tones."""
    generator = torch.Generator().manual_seed(number)
    words = list(_TONES)
    said = [words[number % 3], *([words[number // 3 % 3]] if number % 2 else [])]
    time = np.arange(_RATE // 2) / _RATE
    samples = np.concatenate([0.3 * np.sin(2 * np.pi * _TONES[word] * time) for word in said])
    noise = 0.01 * torch.randn(len(samples), generator=generator).numpy()
    soundfile.write(path, (samples + noise).astype(np.float32), _RATE)
    return {"path": path.name, "sentence": " ".join(said)}


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Writes rows as TSV, and returns the file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
