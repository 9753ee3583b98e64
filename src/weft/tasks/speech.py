"""Speech: a recognizer (Whisper, or wav2vec 2.0's kind with a CTC head) learns the transcripts of clips."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from rich.console import Console
from torch import Tensor

from weft.data.audio import AudioDataset, load_audio
from weft.data.text import IGNORED
from weft.errors import ConfigError
from weft.memory import Sketch
from weft.tasks.recognition.metrics import SPEECH_METRICS, error_rates, normalizer
from weft.tasks.recognition.recognizers import Recognizer, load_recognizer
from weft.tasks.recognition.sketch import speech_sketch, with_weights_of
from weft.tasks.settings.speech import SpeechRun
from weft.training.mode import evaluating
from weft.training.task import LOSS, Evaluation, Sample, Task


class SpeechTask(Task):
    """A run on speech: a recognizer, and clips with what is learned of their transcripts.

    The best weights are those of the lowest word error rate: it is what a user wants, and on little data the loss of a
    decoder rises again, as it grows too sure, while it still makes fewer errors.
    """

    metrics = (LOSS, *SPEECH_METRICS)
    best = "wer"
    config: SpeechRun
    train_data: AudioDataset
    eval_data: AudioDataset | None

    def __init__(
        self, config: SpeechRun, recognizer: Recognizer, train_data: AudioDataset, eval_data: AudioDataset | None
    ) -> None:
        self.config, self.recognizer, self.model = config, recognizer, recognizer.model
        self.train_data, self.eval_data = train_data, eval_data
        self.train_report, self.eval_report = train_data.report, eval_data.report if eval_data else None

    @classmethod
    def open(cls, config: SpeechRun, console: Console | None) -> Self:  # type: ignore[override] # its own settings
        recognizer = load_recognizer(
            config.base,
            dtype=torch.bfloat16 if config.bf16 else torch.float32,
            quantize=config.quantize,
            language=config.language,
            task=config.speech_task,
            trained=bool(config.train_modules),
        )
        if recognizer.window is not None:
            config = config.model_copy(update={"max_seconds": _within(recognizer.window, config.max_seconds)})
        train_data, eval_data = _data(config, recognizer)
        if config.hours is not None and train_data.report.seconds < 3600 * config.hours and console is not None:
            console.print(f"{config.hours:g} hours were asked for, and all of the data are {train_data.report}")
        return cls(config, recognizer, train_data, eval_data)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return self.recognizer.collate

    @property
    def sampling(self) -> Literal["random", "group_by_length"]:
        return "group_by_length" if self.recognizer.pads_to_longest else "random"

    @classmethod
    def early_sketch(cls, config: SpeechRun) -> Sketch | None:  # type: ignore[override] # its own settings
        return speech_sketch(config, None)

    def sketch(self) -> Sketch:
        read = 3 + max(len(each.ids) for each in self.train_data.transcripts)  # after a prefix of four; not the end
        sketch = speech_sketch(self.config, max(self.train_data.lengths), read)
        assert sketch is not None
        return sketch if self.config.quantize == "none" else with_weights_of(sketch, self.model)

    def evaluate(self) -> Evaluation:
        assert self.eval_data is not None
        data, wanted = self.eval_data, self.config.transcribe_rows
        count = len(data) if wanted is None else min(wanted, len(data))
        transcribed = {i * len(data) // count for i in range(count)}
        lengths = data.lengths
        order = sorted(range(len(data)), key=lambda i: lengths[i])
        loss, tokens = 0.0, 0
        answers: dict[int, str] = {}
        model = self.recognizer.model
        with evaluating(model):
            for part in (transcribed, set(order) - transcribed):
                rows = [i for i in order if i in part]
                for start in range(0, len(rows), self.config.batch_size):
                    places = rows[start : start + self.config.batch_size]
                    batch = self.recognizer.collate([data[i] for i in places])
                    batch = {key: value.to(model.device) for key, value in batch.items()}
                    learned = int((batch["labels"] != IGNORED).sum())
                    loss += float(model(**batch).loss) * learned
                    tokens += learned
                    if part is transcribed:
                        texts = self.recognizer.transcribe(batch)
                        answers |= dict(zip(places, texts, strict=True))
        return Evaluation(
            rows=len(data),
            scores={"loss": loss / tokens, **self._error_rates(data, answers)},
            samples=[_sample(data, place, answers[place]) for place in sorted(answers)],
        )

    def save_beside(self, folder: Path) -> None:
        """The processor: features and tokenizer, with the language and the task that were trained."""
        self.recognizer.processor.save_pretrained(folder)

    def usage(self, adapter: Path) -> str:
        prompt = dict(self.recognizer.prompt)
        given = f", generate_kwargs={prompt}" if prompt else ""
        name, held = "pipeline", ""
        if self.config.quantize == "8bit":
            name = "BitsAndBytesConfig, pipeline"
            held = ', model_kwargs={"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}'
        return "\n".join(
            [
                "```python",
                "import soundfile",
                f"from transformers import {name}",
                "",
                "import weft",
                "",
                f'recognizer = pipeline("automatic-speech-recognition", model={self.config.base!r}{held})',
                f"weft.attach(recognizer.model, weft.load({str(adapter)!r}))",
                'samples, rate = soundfile.read("clip.wav")  # mono',
                f'print(recognizer({{"raw": samples, "sampling_rate": rate}}{given})["text"])',
                "```",
            ]
        )

    def _error_rates(self, data: AudioDataset, answers: dict[int, str]) -> dict[str, float]:
        references = [data.clips[place].text for place in answers]
        found = list(answers.values())
        if self.config.normalize_text:
            normalize = normalizer(self.recognizer.english, self.recognizer.spellings)
            references, found = list(map(normalize, references)), list(map(normalize, found))
        return error_rates(references, found)


def _data(config: SpeechRun, recognizer: Recognizer) -> tuple[AudioDataset, AudioDataset | None]:
    load = partial(
        load_audio,
        rate=recognizer.rate,
        encode=recognizer.encode,
        audio_column=config.audio_column,
        transcript_column=config.transcript_column,
        max_seconds=config.max_seconds,
        long_clips=config.long_clips,
    )
    train_data = load(config.train, split=config.train_split, hours=config.hours, seed=config.seed)
    if config.eval is not None:
        return train_data, load(config.eval, split=config.eval_split)
    if config.eval_share is not None:
        return train_data.split(config.eval_share, config.seed)
    return train_data, None


def _within(window: float, wanted: float | None) -> float:
    """The seconds in a clip at most, of a base that has a window."""
    if wanted is not None and wanted > window:
        raise ConfigError(f"max_seconds: {wanted:g} seconds are more than the base's window holds ({window:g})")
    return window if wanted is None else wanted


def _sample(data: AudioDataset, place: int, answer: str) -> Sample:
    clip = data.clips[place]
    name = clip.source.name if isinstance(clip.source, Path) else clip.where
    return Sample(f"{name}, {clip.seconds:.1f} s", clip.text, answer)
