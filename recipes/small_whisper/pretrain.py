"""Pretrains a small Whisper on some speakers of spoken digits, from nothing, on a CPU; others are left to adapt to.

    python recipes/small_whisper/pretrain.py --data FOLDER --output runs/small_whisper
    weft train --task speech --base runs/small_whisper/base --train runs/small_whisper/train.tsv \\
        --eval runs/small_whisper/eval.tsv --language en --learning-rate 2e-3 --epochs 5 --output runs/speakers

FOLDER holds the Free Spoken Digit Dataset (Jakobovski, CC BY-SA 4.0): ``transcripts.tsv`` with the columns file, text,
speaker and split, and its clips of 8 kHz. The output has the base; of the speakers that it never heard ``train.tsv``,
``eval.tsv`` (every eighth of their training clips) and ``test.tsv``; ``seen.tsv`` with the test clips of those that it
did; and ``figures.json``: its word error rates. It takes about five minutes on one core.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor, logging

from weft.data.audio import AudioDataset, Transcript, load_audio
from weft.tasks.tiny.speech import save_whisper, write_table

BATCH, PEAK, WARMUP = 32, 2e-3, 0.05  # the last one is a share of the steps
SHIFT, MASKED_BINS, MASKED_FRAMES = 0.2, 8, 12  # seconds a clip is moved by; bands of SpecAugment (Park et al., 2019)


def tables(data: Path, output: Path, held_out: set[str]) -> dict[str, Path]:
    """Writes the rows of each part as a table of its own: pretrain, seen, train and test."""
    with (data / "transcripts.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    speakers = {row["speaker"] for row in rows}
    if not held_out < speakers:
        raise SystemExit(f"--held-out: expected some of {', '.join(sorted(speakers))}, found {', '.join(held_out)}")
    new = [row for row in rows if row["speaker"] in held_out and row["split"] == "train"]
    parts = {
        "pretrain": [row for row in rows if row["speaker"] not in held_out and row["split"] == "train"],
        "seen": [row for row in rows if row["speaker"] not in held_out and row["split"] == "test"],
        "train": [row for place, row in enumerate(new) if place % 8],
        "eval": new[::8],
        "test": [row for row in rows if row["speaker"] in held_out and row["split"] == "test"],
    }
    return {
        name: write_table(
            output / f"{name}.tsv",
            [{"path": str((data / row["file"]).resolve()), "sentence": row["text"]} for row in part],
        )
        for name, part in parts.items()
    }


def load(table: Path, processor: WhisperProcessor) -> AudioDataset:
    """The clips of a table that fit the window; a transcript's tokens are those after the prefix."""
    prefix = len(processor.tokenizer.prefix_tokens)
    return load_audio(
        table,
        processor.feature_extractor.sampling_rate,
        lambda clip: Transcript(processor.tokenizer(f" {clip.text}").input_ids[prefix:]),
        max_seconds=processor.feature_extractor.chunk_length,
    )


def windows(clips: list[np.ndarray], samples: int, rng: np.random.Generator | None) -> np.ndarray:
    """The clips (n) in windows (rows, samples): at the start, or moved by chance, in a little noise."""
    filled = np.zeros((len(clips), samples), dtype=np.float32)
    for row, clip in zip(filled, clips, strict=True):
        room = samples - len(clip)
        start = 0 if rng is None else int(rng.integers(0, min(room, int(SHIFT * samples)) + 1))
        row[start : start + len(clip)] = clip
    if rng is not None:
        filled += rng.normal(0, 1e-3, filled.shape).astype(np.float32)
    return filled


def features(processor: WhisperProcessor, audio: np.ndarray) -> Tensor:
    """Log-mel features (rows, bins, frames)."""
    extractor = processor.feature_extractor
    found: Tensor = extractor(list(audio), sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
    return found


def mask(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """SpecAugment: one band of bins and one of frames, of each row, set to the row's mean."""
    for row in mel:
        mean = row.mean()
        for axis, widest in ((0, MASKED_BINS), (1, MASKED_FRAMES)):
            width = int(rng.integers(0, widest + 1))
            start = int(rng.integers(0, row.shape[axis] - width + 1))
            row.narrow(axis, start, width).fill_(mean)
    return mel


def inputs(mel: Tensor, labels: list[list[int]], prefix: list[int], end: int) -> dict[str, Tensor]:
    """A batch: the decoder reads the prefix and the words, and learns the words and the end."""
    longest = max(map(len, labels))
    padding = [longest - len(row) for row in labels]
    read = [prefix + row[:-1] + [end] * pad for row, pad in zip(labels, padding, strict=True)]
    learned = [[-100] * (len(prefix) - 1) + row + [-100] * pad for row, pad in zip(labels, padding, strict=True)]
    return {"input_features": mel, "decoder_input_ids": torch.tensor(read), "labels": torch.tensor(learned)}


@torch.no_grad()
def word_error_rate(model: WhisperForConditionalGeneration, processor: WhisperProcessor, data: AudioDataset) -> float:
    """The share of clips, of one word each, that are not transcribed right, in percent."""
    model.eval()
    wrong = 0
    for start in range(0, len(data), 50):
        rows = [data[i] for i in range(start, min(start + 50, len(data)))]
        audio = windows([row["audio"] for row in rows], processor.feature_extractor.n_samples, None)
        ids = model.generate(features(processor, audio), language="en", task="transcribe", max_new_tokens=8)
        texts = processor.batch_decode(ids, skip_special_tokens=True)
        wrong += sum(
            text.strip() != clip.text for text, clip in zip(texts, data.clips[start : start + 50], strict=True)
        )
    model.train()
    return 100 * wrong / len(data)


def train(model: WhisperForConditionalGeneration, processor: WhisperProcessor, data: AudioDataset, epochs: int) -> None:
    """Trains on the clips, in an order drawn anew for each epoch; prints the loss."""
    rng = np.random.default_rng(0)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    clips = [row["audio"] for row in (data[i] for i in range(len(data)))]
    labels = [list(transcript.ids) for transcript in data.transcripts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    steps = len(clips) // BATCH
    model.train()
    for epoch in range(epochs):
        order, losses = rng.permutation(len(clips)), []
        for step in range(steps):
            share = (epoch * steps + step) / (epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = PEAK * min(share / WARMUP, 0.5 * (1 + math.cos(math.pi * share)))
            chosen = order[step * BATCH : (step + 1) * BATCH]
            audio = windows([clips[i] for i in chosen], extractor.n_samples, rng)
            mel = mask(features(processor, audio), rng)
            batch = inputs(mel, [labels[i] for i in chosen], tokenizer.prefix_tokens, tokenizer.eos_token_id)
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:3} of {epochs}  loss {sum(losses) / steps:.3f}", flush=True)


def main() -> None:
    """Pretrains, evaluates and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--held-out", nargs="+", default=["nicolas", "theo"], help="speakers to adapt to later")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = tables(options.data, options.output, set(options.held_out))
    base = save_whisper(options.output / "base", seconds=1, mel_bins=40, width=128, layers=(3, 2))
    processor = WhisperProcessor.from_pretrained(base)
    processor.tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    model = WhisperForConditionalGeneration.from_pretrained(base)
    loaded = {name: load(table, processor) for name, table in parts.items()}
    print(f"{model.num_parameters():,} parameters; " + "; ".join(f"{k}: {v.report}" for k, v in loaded.items()))
    begun = time.monotonic()
    train(model, processor, loaded["pretrain"], options.epochs)
    minutes = (time.monotonic() - begun) / 60
    errors = {name: word_error_rate(model, processor, loaded[name]) for name in ("seen", "train", "test")}
    model.save_pretrained(base)
    figures = {
        "parameters": model.num_parameters(),
        "epochs": options.epochs,
        "minutes": round(minutes, 1),
        "held_out": sorted(options.held_out),
        "word_error_rate": errors,
    }
    (options.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
