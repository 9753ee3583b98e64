"""The two families of speech recognizers: Whisper, which writes a transcript, and CTC, which labels frames.

A recognizer is a base with its processor: what its batches look like, what of a transcript it learns, and how it
transcribes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.loss.loss_ctc import ForCTCLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from weft.data.audio import Clip, Transcript
from weft.data.text import IGNORED
from weft.errors import ConfigError, nearest
from weft.training.base import checked_path, reason
from weft.training.config import Quantize
from weft.training.quantize import weights_as

Rows = list[dict[str, Any]]

# Languages written without spaces between words: a transcript does not start with one either.
_WITHOUT_SPACES = {"zh", "ja", "th", "lo", "my", "km", "bo", "yue"}
_ENGLISH_ONLY = 51864  # tokens of the English Whispers, whose generation settings may be older than `is_multilingual`


class Recognizer(ABC):
    """A base that recognizes speech.

    Attributes:
        model: in evaluation mode; its loss is the mean over a batch's label tokens, in nats.
        processor: its features and tokenizer.
        rate: samples a second that it takes.
        window: seconds that it takes at most; None for no limit.
        pads_to_longest: whether clips of like length are best met in a batch.
        english: whether it writes English.
        spellings: British to American, for comparing texts.
        prompt: what transformers' pipeline is to be told when it transcribes.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    rate: int
    window: float | None
    pads_to_longest: bool
    english: bool
    spellings: Mapping[str, str]
    prompt: Mapping[str, str]

    @abstractmethod
    def encode(self, clip: Clip) -> Transcript:
        """What is learned of a clip's transcript."""

    @abstractmethod
    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """A batch of the items of an `AudioDataset`, as the model takes it, on the CPU."""

    @abstractmethod
    def transcribe(self, batch: dict[str, Tensor]) -> list[str]:
        """The most likely transcripts, token by token, of a batch on the model's device."""


def load_recognizer(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
    language: str | None = None,
    task: str = "transcribe",
    trained: bool = False,
) -> Recognizer:
    """Loads a Whisper, or a model of wav2vec 2.0's kind with a CTC head, and its processor.

    Args:
        name: a folder, or a hub id.
        dtype: the weights' dtype.
        quantize: "8bit" holds the linear layers in 8 bits, and puts the model on the GPU if there is one.
        language: spoken, as a code or in English; needed by a multilingual Whisper.
        task: "transcribe" or "translate", for Whisper.
        trained: whether whole modules will be trained, so that weights which the base lacks may be.

    Raises:
        ConfigError: no such folder, or what is there is neither; a language that it does not know, or needs.
    """
    path = checked_path(name)
    try:
        config = AutoConfig.from_pretrained(path)
        is_whisper = isinstance(config, WhisperConfig)
        if not is_whisper and type(config) not in MODEL_FOR_CTC_MAPPING:
            raise ConfigError(
                f"base: {path!r} is a {config.model_type}; speech takes a Whisper, or a model with a CTC head "
                "(wav2vec2, hubert, wavlm, ...)"
            )
        # A layer that a step skips would leave its adapter without a gradient.
        whole = {name: 0.0 for name in config.to_dict() if name.endswith("layerdrop")}
        family = AutoModelForSpeechSeq2Seq if is_whisper else AutoModelForCTC
        weights = weights_as(dtype, quantize, keep=() if is_whisper else ("lm_head",))
        model, found = family.from_pretrained(path, output_loading_info=True, **weights, **whole)
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"base: transformers cannot load {path!r} as a speech recognizer: {reason(error)}") from error
    missing = sorted({key.rpartition(".")[0] for key in found["missing_keys"]})
    if missing and not trained:
        raise ConfigError(
            f"base: {path!r} has no weights for {', '.join(missing)}, which would stay random; take a base that was "
            "trained to recognize speech, or train them too: train_modules"
        )
    model.eval()
    if isinstance(model, WhisperForConditionalGeneration):
        return WhisperRecognizer(model, processor, language, task)
    return CTCRecognizer(model, processor, language)


class WhisperRecognizer(Recognizer):
    """Whisper (Radford et al., 2022, arXiv 2212.04356): the decoder reads a prefix, and writes the words and the end.

    The prefix, of language, task and "no timestamps", is given to it in training as in use, and not learned.
    """

    pads_to_longest = False  # each clip fills the window

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, language: str | None, task: str
    ) -> None:
        self.model, self.processor = model, processor
        self.model.config.use_cache = False  # generation asks for it itself
        self._features, self._tokenizer = processor.feature_extractor, processor.tokenizer
        self.rate = self._features.sampling_rate
        self._samples = 2 * model.config.max_source_positions * self._features.hop_length  # the encoder halves frames
        self.window = self._samples / self.rate
        code = self._code(language, task)
        names = ["<|startoftranscript|>", *([f"<|{code}|>", f"<|{task}|>"] if code else []), "<|notimestamps|>"]
        vocabulary = self._tokenizer.get_vocab()
        if lacking := [name for name in names if name not in vocabulary]:
            raise ConfigError(f"language: this base's tokenizer has no {', '.join(lacking)}")
        if code:
            self._tokenizer.set_prefix_tokens(language=code, task=task, predict_timestamps=False)  # as it is saved
        self.prefix = [vocabulary[name] for name in names]
        self._space = "" if code in _WITHOUT_SPACES else " "
        self.english = code in (None, "en") or task == "translate"
        self.spellings = self._tokenizer.english_spelling_normalizer or {}
        self.prompt = {"language": code, "task": task} if code else {}

    def encode(self, clip: Clip) -> Transcript:
        end = self._tokenizer.eos_token_id
        ids = [*self._tokenizer(self._space + clip.text, add_special_tokens=False).input_ids, end]
        held, needed = self.model.config.max_target_positions, len(self.prefix) + len(ids) - 1
        obstacle = f"its transcript takes {needed} tokens, and the decoder holds {held}" if needed > held else None
        return Transcript(ids, obstacle=obstacle)

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """input_features (rows, bins, frames); decoder_input_ids, labels (rows, longest)."""
        heard = self._features(
            [row["audio"] for row in rows],
            sampling_rate=self.rate,
            max_length=self._samples,
            padding="max_length",
            return_tensors="pt",
        )
        longest = max(len(row["labels"]) for row in rows)
        read, learned = [], []
        for row in rows:
            padding = longest - len(row["labels"])
            read.append([*self.prefix, *row["labels"][:-1], *[self._tokenizer.eos_token_id] * padding])
            learned.append([*[IGNORED] * (len(self.prefix) - 1), *row["labels"], *[IGNORED] * padding])
        return {
            "input_features": heard.input_features.to(self.model.dtype),
            "decoder_input_ids": torch.tensor(read),
            "labels": torch.tensor(learned),
        }

    def transcribe(self, batch: dict[str, Tensor]) -> list[str]:
        features = batch["input_features"]
        room = self.model.config.max_target_positions - len(self.prefix)
        settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=room, use_cache=True)
        # Whisper's own `generate` adds timestamps and windows to this, and needs newer settings beside old weights.
        ids = GenerationMixin.generate(
            cast(Any, self.model),
            input_features=features,
            decoder_input_ids=torch.tensor([self.prefix], device=features.device).expand(len(features), -1),
            generation_config=settings,
        )
        texts = self._tokenizer.batch_decode(ids[:, len(self.prefix) :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _code(self, language: str | None, task: str) -> str | None:
        """The language as its token has it; None for a base that knows English alone."""
        known = self.model.config.vocab_size != _ENGLISH_ONLY
        settings = self.model.generation_config
        if not (known if settings is None else getattr(settings, "is_multilingual", known)):
            if (language or "en").lower() not in ("en", "english") or task != "transcribe":
                raise ConfigError(
                    "language: this base knows English alone, and transcribes it; take a multilingual one"
                )
            return None
        if language is None:
            raise ConfigError("language: this base knows many languages; name the one that is spoken, such as sv")
        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if code not in LANGUAGES:
            hint = nearest(language.lower(), TO_LANGUAGE_CODE)
            raise ConfigError(f"language: Whisper knows no {language!r}{hint}; give its code (sv) or its English name")
        return code


class CTCRecognizer(Recognizer):
    """A model of wav2vec 2.0's kind (Baevski et al., 2020): each frame is a letter or blank (Graves et al., 2006)."""

    window = None
    pads_to_longest = True

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, language: str | None) -> None:
        features = processor.feature_extractor
        if not isinstance(features, Wav2Vec2FeatureExtractor):
            raise ConfigError(
                f"base: its features are of {type(features).__name__}; of models with a CTC head, speech takes those "
                "that read the waveform (wav2vec2, hubert, wavlm, ...)"
            )
        self.model, self.processor = model, processor
        self._features, self._tokenizer = features, processor.tokenizer
        self.rate = features.sampling_rate
        self._blank = model.config.pad_token_id
        self.model.loss_function = mean_ctc_loss
        letters = [token for token in self._tokenizer.get_vocab() if len(token) == 1 and token.isalpha()]
        self._upper = bool(letters) and all(letter == letter.upper() for letter in letters)
        self._lower = bool(letters) and all(letter == letter.lower() for letter in letters)
        self.english = (language or "").lower() in ("en", "english")
        self.spellings, self.prompt = {}, {}
        self._shortest = model.config.mask_time_length if model.config.apply_spec_augment else 0

    def encode(self, clip: Clip) -> Transcript:
        text = clip.text.upper() if self._upper else clip.text.lower() if self._lower else clip.text
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        known = [i for i in ids if i != self._tokenizer.unk_token_id]
        repeated = sum(a == b for a, b in pairwise(known))  # a blank has to stand between
        frames = int(self._frames(torch.tensor(clip.samples_at(self.rate))))
        obstacle = None
        if len(known) + repeated > frames:
            obstacle = f"its transcript takes {len(known) + repeated} frames, and the clip has {frames}"
        elif frames <= self._shortest:
            obstacle = f"it has {frames} frames, and the base masks {self._shortest} at a time in training"
        elif not known:
            obstacle = "the base's vocabulary has none of the transcript's letters"
        return Transcript(known, len(ids) - len(known), obstacle)

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """input_values (rows, samples), attention_mask where the base takes one; labels (rows, longest)."""
        heard = self._features(
            [row["audio"] for row in rows], sampling_rate=self.rate, padding=True, return_tensors="pt"
        )
        longest = max(len(row["labels"]) for row in rows)
        batch = {"input_values": heard["input_values"].to(self.model.dtype)}
        if "attention_mask" in heard:
            batch["attention_mask"] = heard["attention_mask"].long()
        labels = [row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in rows]
        return batch | {"labels": torch.tensor(labels)}

    def transcribe(self, batch: dict[str, Tensor]) -> list[str]:
        ids = self.model(**{key: value for key, value in batch.items() if key != "labels"}).logits.argmax(-1)
        if "attention_mask" in batch:
            frames = self._frames(batch["attention_mask"].sum(-1))
            ids[torch.arange(ids.shape[1], device=ids.device) >= frames[:, None]] = self._blank
        return [str(text).strip() for text in self._tokenizer.batch_decode(ids)]

    def _frames(self, samples: Tensor) -> Tensor:
        """Frames that the model makes of so many samples; as its loss counts them."""
        return cast(Any, self.model)._get_feat_extract_output_lengths(samples)


def mean_ctc_loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """-log p of a batch's transcripts over their tokens, whatever the base's settings make of a batch."""
    loss = ForCTCLoss(logits, labels, **(options | {"reduction": "sum", "zero_infinity": False}))
    return loss / (labels != IGNORED).sum()
