"""Recognizers: what is learned of a transcript, what the loss is, and how they transcribe."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tasks.speech_bases import altered
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCTC,
    TrainingArguments,
    Wav2Vec2Config,
    WhisperForConditionalGeneration,
)

import weft
from weft.data.audio import AudioDataset, Clip, load_audio
from weft.data.text import IGNORED
from weft.errors import ConfigError
from weft.tasks.recognition.recognizers import CTCRecognizer, Recognizer, WhisperRecognizer, load_recognizer
from weft.training import AdapterTrainer


def data(recognizer: Recognizer, clips: Path) -> AudioDataset:
    return load_audio(clips / "train.tsv", recognizer.rate, recognizer.encode)


def clip(text: str, seconds: float = 1.0, rate: int = 16_000) -> Clip:
    samples = np.zeros(round(seconds * rate), dtype=np.float32)
    return Clip(samples, len(samples), rate, text, "here")


def swedish(whisper: Path) -> WhisperRecognizer:
    recognizer = load_recognizer(whisper, language="sv")
    assert isinstance(recognizer, WhisperRecognizer)
    return recognizer


def test_whisper_reads_its_prefix_and_learns_the_words_and_the_end(whisper: Path) -> None:
    recognizer = swedish(whisper)
    tokenizer = recognizer.processor.tokenizer
    rows = [
        {"audio": np.zeros(16_000, np.float32), "labels": recognizer.encode(clip(text)).ids} for text in ("hej", "å")
    ]
    batch = recognizer.collate(rows)
    read = ["<|startoftranscript|>", "<|sv|>", "<|transcribe|>", "<|notimestamps|>"]
    words = [*tokenizer.tokenize(" hej"), "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0]) == [*read, *words[:-1]]
    learned = batch["labels"] != IGNORED
    assert learned.sum(1).tolist() == [len(words), 1 + 2 + 1]  # a space, the letter's two bytes, the end
    assert tokenizer.convert_ids_to_tokens(batch["labels"][0][learned[0]]) == words
    assert batch["input_features"].shape == (2, 80, 200)
    logits = recognizer.model(**batch).logits
    expected = F.cross_entropy(logits[learned], batch["labels"][learned])
    assert torch.allclose(recognizer.model(**batch).loss, expected)


@pytest.mark.parametrize(
    ("language", "text", "first"), [("ja", "東京", "東京"), ("english", "To", " To"), ("SV", "Å", " Å")]
)
def test_a_transcript_starts_with_a_space_where_words_are_parted_by_one(
    whisper: Path, language: str, text: str, first: str
) -> None:
    recognizer = load_recognizer(whisper, language=language)
    ids = recognizer.encode(clip(text)).ids
    assert recognizer.processor.tokenizer.decode(ids[:-1]) == first


def test_whisper_transcribes_as_its_own_generate_does(whisper: Path, clips: Path) -> None:
    recognizer = swedish(whisper)
    torch.manual_seed(1)
    for parameter in recognizer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = data(recognizer, clips)
    batch = recognizer.collate([found[i] for i in range(4)])
    model = recognizer.model
    assert isinstance(model, WhisperForConditionalGeneration)
    with torch.no_grad():
        texts = recognizer.transcribe(batch)
        ids = model.generate(batch["input_features"], language="sv", task="transcribe", use_cache=True)
    expected = recognizer.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == [text.strip() for text in expected]
    assert any(texts)


def test_a_transcript_that_the_decoder_cannot_hold_is_an_obstacle(whisper: Path) -> None:
    recognizer = swedish(whisper)
    assert recognizer.encode(clip("a" * 59)).obstacle is None  # 4 of the prefix, the space, 59
    obstacle = recognizer.encode(clip("a" * 60)).obstacle
    assert obstacle == "its transcript takes 65 tokens, and the decoder holds 64"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "language: this base knows many languages; name the one that is spoken"),
        ({"language": "swedsh"}, "Whisper knows no 'swedsh'; did you mean 'swedish'"),
        ({"language": "xx"}, "Whisper knows no 'xx'"),
    ],
)
def test_a_multilingual_whisper_is_told_the_language(whisper: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recognizer(whisper, **options)


def test_an_english_whisper_has_a_prefix_without_language(whisper: Path, tmp_path: Path) -> None:
    folder = tmp_path / "english"
    shutil.copytree(whisper, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"is_multilingual": False}))
    recognizer = load_recognizer(folder)
    assert isinstance(recognizer, WhisperRecognizer)
    names = recognizer.processor.tokenizer.convert_ids_to_tokens(recognizer.prefix)
    assert names == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert recognizer.english
    with pytest.raises(ConfigError, match="this base knows English alone"):
        load_recognizer(folder, language="sv")


def test_translating_is_into_english(whisper: Path) -> None:
    recognizer = load_recognizer(whisper, language="sv", task="translate")
    assert isinstance(recognizer, WhisperRecognizer)
    assert recognizer.english
    assert "<|translate|>" in recognizer.processor.tokenizer.convert_ids_to_tokens(recognizer.prefix)
    assert not swedish(whisper).english


def test_a_ctc_loss_is_the_mean_over_the_labels_of_all_rows(wav2vec2: Path, clips: Path) -> None:
    recognizer = load_recognizer(wav2vec2)
    found = data(recognizer, clips)
    rows = [found[0], found[1]]
    batch = recognizer.collate(rows)
    output = recognizer.model(**batch)
    frames = torch.full((2,), output.logits.shape[1])
    lengths = torch.tensor([len(row["labels"]) for row in rows])
    assert lengths[0] != lengths[1]
    targets = torch.tensor([label for row in rows for label in row["labels"]])
    log_p = output.logits.log_softmax(-1).transpose(0, 1)
    expected = F.ctc_loss(log_p, targets, frames, lengths, reduction="sum") / lengths.sum()
    assert torch.allclose(output.loss, expected)


def test_ctc_labels_have_the_case_of_the_vocabulary_and_only_its_letters(wav2vec2: Path, tmp_path: Path) -> None:
    recognizer = load_recognizer(wav2vec2)
    tokenizer = recognizer.processor.tokenizer
    found = recognizer.encode(clip("Don't, 7!", seconds=2))
    assert tokenizer.convert_ids_to_tokens(found.ids) == [*"don't", "|"]
    assert found.unknown == 3
    folder = tmp_path / "upper"
    shutil.copytree(wav2vec2, folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(
        json.dumps({token if "<" in token else token.upper(): i for token, i in vocabulary.items()})
    )
    upper = load_recognizer(folder)
    assert upper.processor.tokenizer.convert_ids_to_tokens(upper.encode(clip("Don't")).ids) == [*"DON'T"]


@pytest.mark.parametrize(
    ("text", "seconds", "obstacle"),
    [
        ("abcabc", 0.135, None),
        ("abcabca", 0.135, "its transcript takes 7 frames, and the clip has 6"),
        ("aabb", 0.125, None),
        ("aabbc", 0.135, "its transcript takes 7 frames, and the clip has 6"),
        ("a", 0.05, "it has 2 frames, and the base masks 2 at a time in training"),
        ("123", 1.0, "the base's vocabulary has none of the transcript's letters"),
    ],
)
def test_what_a_ctc_loss_cannot_learn_is_an_obstacle(wav2vec2: Path, text: str, seconds: float, obstacle: str) -> None:
    recognizer = load_recognizer(wav2vec2)
    found = recognizer.encode(clip(text, seconds))
    assert found.obstacle == obstacle
    if obstacle is None:
        batch = recognizer.collate([{"audio": clip(text, seconds).samples(16_000), "labels": list(found.ids)}])
        assert torch.isfinite(recognizer.model(**batch).loss)


# With these, padding does not change a row; so are the larger models.
MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
CERTAIN = {
    name: 0.0
    for name in (
        "dropout",
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "final_dropout",
    )
} | {"apply_spec_augment": False}


def test_a_clip_is_transcribed_the_same_beside_a_longer_one(wav2vec2: Path, clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    recognizer = load_recognizer(altered(wav2vec2, tmp_path / "masked", **MASKED))
    found = data(recognizer, clips)
    short, long = found[0], found[1]
    assert len(short["audio"]) < len(long["audio"])
    with torch.no_grad():
        torch.nn.init.normal_(recognizer.model.lm_head.weight, std=2.0)
        recognizer.model.lm_head.bias[:5] = -1e4  # letters alone
        alone = recognizer.transcribe(recognizer.collate([short]))
        beside = recognizer.transcribe(recognizer.collate([short, long]))
    assert alone[0]
    assert beside[0] == alone[0]


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_a_step_may_be_cut_into_batches(
    family: str, clips: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Few labels beside many: a mean of means, or a sum, would be another number."""
    settings = CERTAIN | (MASKED if family == "wav2vec2" else {})
    base = altered(request.getfixturevalue(family), tmp_path / "base", **settings)
    own, losses, gradients = 0.0, [], []
    for size in (4, 2, 1):
        torch.manual_seed(0)
        recognizer = load_recognizer(base, language="sv")
        found = data(recognizer, clips)
        rows = [found[i] for i in range(4)]
        with torch.no_grad():
            own = float(recognizer.model(**recognizer.collate(rows)).loss)  # of all rows at once
        weft.attach(recognizer.model, weft.LoRAConfig(rank=2, targets="q_proj"))
        kept: dict[int, Tensor] = {}
        for place, parameter in enumerate(weft.trainable_parameters(recognizer.model)):
            parameter.register_post_accumulate_grad_hook(partial(keep, kept, place))
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
            logging_steps=1, max_grad_norm=0, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = AdapterTrainer(
            model=recognizer.model, args=arguments, train_dataset=rows, data_collator=recognizer.collate
        )
        losses.append(trainer.train().training_loss)
        gradients.append(kept)
    assert losses == pytest.approx([own] * 3, rel=1e-4)
    for cut in gradients[1:]:
        for place, gradient in gradients[0].items():
            torch.testing.assert_close(cut[place], gradient, rtol=1e-3, atol=1e-6)


def keep(kept: dict[int, Tensor], place: int, parameter: Tensor) -> None:
    assert parameter.grad is not None
    kept[place] = parameter.grad.clone()


def test_no_layer_is_skipped_at_random(wav2vec2: Path) -> None:
    """Its adapter would get no gradient; the configuration's default is one layer in ten."""
    assert Wav2Vec2Config.from_pretrained(wav2vec2).layerdrop > 0
    assert load_recognizer(wav2vec2).model.config.layerdrop == 0


def test_a_base_that_is_no_recognizer_is_refused(base: Path, wav2vec2: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a llama; speech takes a Whisper, or a model with a CTC head"):
        load_recognizer(base)
    with pytest.raises(ConfigError, match=r"there is no folder \./none"):
        load_recognizer("./none")
    folder = tmp_path / "headless"
    shutil.copytree(wav2vec2, folder)
    AutoModelForCTC.from_pretrained(wav2vec2).wav2vec2.save_pretrained(folder)
    with pytest.raises(ConfigError, match="has no weights for lm_head, which would stay random"):
        load_recognizer(folder)
    assert isinstance(load_recognizer(folder, trained=True), CTCRecognizer)
