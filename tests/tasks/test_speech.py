"""Runs on speech, from their settings to the adapter, on tiny recognizers."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import pytest
import soundfile
import torch
from tasks.speech_bases import altered
from transformers import AutoProcessor, TrainingArguments
from typer.testing import CliRunner

import weft
from weft.cli import app
from weft.data.audio import AudioDataset
from weft.errors import ConfigError, DataError
from weft.nn import storage_of
from weft.tasks import SpeechRun
from weft.tasks.recognition.metrics import error_rates, normalizer
from weft.tasks.recognition.recognizers import load_recognizer
from weft.tasks.speech import SpeechTask
from weft.training import AdapterTrainer, RunConfig, RunResult, run
from weft.training.checked_trainer import EpochLengthSampler
from weft.training.run_memory import run_memory


@pytest.fixture
def settings(clips: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "train": str(clips / "train.tsv"), "eval": str(clips / "test.tsv"), "output": tmp_path / "run", "rank": 4,
        "tensorboard": False, "batch_size": 4, "save_every": 100, "eval_every": 100,
    }  # fmt: skip


def whisper_run(whisper: Path, settings: dict[str, Any], **changes: Any) -> RunResult:
    return run(SpeechRun(**({"base": str(whisper), "language": "en"} | settings | changes)))


def test_whisper_learns_the_words_for_tones(whisper: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    base = altered(whisper, tmp_path / "base", init_std=0.2)  # large random weights, that an adapter can choose among
    result = whisper_run(base, settings, learning_rate=1e-2, epochs=20, rank=16, eval_every=15)
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < 0.7 * result.before.loss
    references = [sample.reference for sample in result.after.samples]
    assert references == ["low", "middle low", "high", "low middle"]
    assert result.after.samples[1].input == "1.wav, 1.0 s"
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["eval_wer"] for line in lines if "eval_wer" in line and line["step"]}
    assert len(set(rates.values())) > 1
    assert result.after.scores["wer"] == min(rates.values())
    assert rates[result.best_step or 0] == min(rates.values())
    assert "| word error rate |" in (result.folder / "README.md").read_text()
    kept = RunConfig.from_yaml(result.folder / "config.yaml")
    assert isinstance(kept, SpeechRun)
    assert kept.max_seconds == 2  # what was found out


def test_the_processor_beside_the_adapter_writes_the_language(whisper: Path, settings: dict[str, Any]) -> None:
    result = whisper_run(whisper, settings, max_steps=1, language="swedish", speech_task="translate")
    tokenizer = AutoProcessor.from_pretrained(result.adapter).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("hej").input_ids)[1:3] == ["<|sv|>", "<|translate|>"]
    assert weft.load(result.adapter).provenance["task"] == "speech"


@pytest.mark.parametrize(("family", "quantize"), [("whisper", "none"), ("whisper", "8bit"), ("wav2vec2", "8bit")])
def test_the_card_shows_how_to_use_the_adapter(
    family: str, quantize: str, settings: dict[str, Any], clips: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    result = whisper_run(request.getfixturevalue(family), settings, max_steps=1, eval=None, quantize=quantize)
    code = (result.folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert ("'language': 'en'" in code) == (family == "whisper")
    samples, rate = soundfile.read(clips / "clips/0.wav")
    monkeypatch.chdir(settings["output"])
    soundfile.write("clip.wav", samples, rate)
    names: dict[str, Any] = {}
    exec(code, names)
    modules = names["recognizer"].model.modules()
    assert any(storage_of(module) is not None for module in modules) == (quantize == "8bit")
    assert weft.collect(names["recognizer"].model).factors.keys() == weft.load(result.adapter).factors.keys()


def test_a_ctc_model_learns_letters(wav2vec2: Path, settings: dict[str, Any]) -> None:
    changes = {"learning_rate": 2e-2, "epochs": 8, "train_modules": ("lm_head",), "rank": 16}
    result = run(SpeechRun(base=str(wav2vec2), **(settings | changes)))
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < 0.5 * result.before.loss
    assert math.isfinite(result.after.scores["cer"])
    assert result.train_data.unknown_characters == 0


def test_clips_of_like_length_meet_without_being_decoded_for_it(
    wav2vec2: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    task = SpeechTask.open(SpeechRun(base=str(wav2vec2), bf16=False, **settings), None)
    lengths = task.train_data.lengths
    assert set(lengths) == {8_000, 16_000}
    gone = [replace(clip, source=tmp_path / "gone") for clip in task.train_data.clips]
    data = AudioDataset(gone, task.train_data.transcripts, task.train_data.rate)
    weft.attach(task.model, weft.LoRAConfig(rank=2))
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, train_sampling_strategy=task.sampling, report_to="none",
        use_cpu=True,
    )  # fmt: skip
    trainer = AdapterTrainer(model=task.model, args=arguments, train_dataset=data, data_collator=task.collator)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, EpochLengthSampler)  # which puts rows of like length together
    assert sampler.lengths == lengths


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
@pytest.mark.parametrize("quantize", ["none", "8bit"])
def test_memory_is_planned_before_the_run(
    family: str, quantize: str, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    config = SpeechRun(base=str(base), bf16=False, language="en", quantize=quantize, **settings)
    task = SpeechTask.open(config, None)
    report = run_memory(config, task.sketch(), opened=True)
    assert "activations of the largest batch" in str(report)
    weights = sum(each.nbytes for each in (*task.model.parameters(), *task.model.buffers()))
    assert report.plan.weights == weights
    early = SpeechTask.early_sketch(config)
    assert (early is None) == (family == "wav2vec2")  # whose longest clip is not known yet


def test_an_adapter_is_merged_into_a_ctc_base(wav2vec2: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    result = run(SpeechRun(base=str(wav2vec2), **(settings | {"max_steps": 3, "learning_rate": 1e-2, "eval": None})))
    words = ["merge", str(wav2vec2), str(result.adapter), "--output", str(tmp_path / "merged")]
    merging = CliRunner().invoke(app, words)
    assert merging.exit_code == 0, merging.output
    adapted, merged = load_recognizer(wav2vec2), load_recognizer(tmp_path / "merged")
    weft.attach(adapted.model, weft.load(result.adapter))
    samples = torch.randn(1, 8_000)
    with torch.no_grad():
        expected = adapted.model(samples).logits
        assert not torch.allclose(load_recognizer(wav2vec2).model(samples).logits, expected, atol=1e-4)
        torch.testing.assert_close(merged.model(samples).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_all_tokens_however_they_are_batched(whisper: Path, settings: dict[str, Any]) -> None:
    found = []
    for size in (1, 3, 12):
        changes = {"eval": settings["train"], "batch_size": size, "transcribe_rows": 5}
        task = SpeechTask.open(SpeechRun(base=str(whisper), bf16=False, language="en", **(settings | changes)), None)
        found.append(task.evaluate())
    assert [each.loss for each in found] == pytest.approx([found[0].loss] * 3, rel=1e-5)
    assert [[sample.input for sample in each.samples] for each in found] == [
        [sample.input for sample in found[0].samples]
    ] * 3
    assert len(found[0].samples) == 5
    assert found[0].rows == 12
    texts = [(sample.reference, sample.answer) for sample in found[0].samples]
    normalize = normalizer(True, {})
    expected = jiwer.wer([normalize(text) for text, _ in texts], [normalize(text) for _, text in texts])
    assert found[0].scores["wer"] == pytest.approx(100 * expected)


def test_error_rates_are_over_all_words_and_characters() -> None:
    rates = error_rates(["the cat sat", "a"], ["the bat sat down", ""])
    assert rates["wer"] == pytest.approx(100 * 3 / 4)  # one substituted, one inserted, one deleted
    assert rates["cer"] == pytest.approx(100 * (1 + 5 + 1) / 12)


def test_texts_are_compared_as_whispers_authors_do() -> None:
    english, other = normalizer(True, {"colour": "color"}), normalizer(False, {})
    assert english("It's twenty-one Colours, uh, (laughs) the COLOUR!") == english("it is 21 colours the color")
    assert other("Hej, på dig!") == "hej på dig"
    assert other("it's") != other("it is")


def test_texts_as_they_are(whisper: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    for normalize_text in (True, False):
        config = SpeechRun(base=str(whisper), bf16=False, language="en", normalize_text=normalize_text, **settings)
        task = SpeechTask.open(config, None)
        monkeypatch.setattr(task.recognizer, "transcribe", lambda batch: ["Low."] * len(batch["labels"]))
        rates.append(task.evaluate().scores["wer"])
    assert rates[0] < rates[1] == 100


def test_hours_are_drawn_by_the_seed(whisper: Path, settings: dict[str, Any]) -> None:
    def trained(hours: float | None) -> int:
        config = SpeechRun(base=str(whisper), bf16=False, language="en", hours=hours, **settings)
        task = SpeechTask.open(config, None)
        assert task.eval_report is not None
        assert task.eval_report.rows == 4  # of the training data alone
        return task.train_report.rows

    assert trained(None) == 12
    assert 2 <= trained(2.0 / 3600) <= 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"language": None}, ConfigError, "this base knows many languages"),
        ({"max_seconds": 3.0}, ConfigError, r"max_seconds: 3 seconds are more than the base's window holds \(2\)"),
        ({"max_seconds": 0.7, "long_clips": "error"}, DataError, r"train.tsv line 3: 1.00 seconds"),
        ({"transcript_column": "text"}, DataError, "expected the column 'text'"),
        ({"base": "bundled"}, ConfigError, "is a llama"),
        ({"long_clips": "truncate"}, ConfigError, "long_clips: expected 'drop' or 'error', found 'truncate'"),
        ({"packing": True}, ConfigError, "unknown setting 'packing'"),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing_behind(
    whisper: Path, settings: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        whisper_run(whisper, settings, **changes)
    assert not settings["output"].exists()


def test_bf16_bases_take_their_features_in_bf16(
    whisper: Path, wav2vec2: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    for base in (whisper, wav2vec2):
        result = whisper_run(base, settings, max_steps=1, bf16=True, output=tmp_path / base.parent.name)
        assert result.after is not None
        assert math.isfinite(result.after.loss)


def test_a_killed_run_goes_on_bit_for_bit_with_masks_drawn_at_random(
    wav2vec2: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"base": str(wav2vec2), "max_steps": 4, "save_every": 2, "eval": None}
    whole = run(SpeechRun(**(settings | changes | {"output": tmp_path / "whole"})))
    config = SpeechRun(**(settings | changes))
    first = run(config)
    shutil.rmtree(first.adapter)
    shutil.rmtree(first.folder / "checkpoints" / "checkpoint-4")
    again = run(config, resume=True)
    expected, found = weft.load(whole.adapter), weft.load(again.adapter)
    for name, factors in expected.factors.items():
        assert torch.equal(found.factors[name].B, factors.B)


def test_a_base_in_8_bits_keeps_its_head_and_learns(whisper: Path, wav2vec2: Path, settings: dict[str, Any]) -> None:
    for base, head, changes in ((whisper, "proj_out", {"language": "en"}), (wav2vec2, "lm_head", {})):
        config = SpeechRun(**settings | changes | {"base": str(base), "quantize": "8bit", "max_steps": 2})
        task = SpeechTask.open(config, None)
        linear = [path for path, module in task.model.named_modules() if isinstance(module, torch.nn.Linear)]
        stored = [path for path, module in task.model.named_modules() if storage_of(module) is not None]
        assert stored == [path for path in linear if path != head]
        adapter = weft.load(run(config, overwrite=True).adapter)
        assert adapter.provenance["quantize"] == "8bit"
        plain = SpeechTask.open(config.model_copy(update={"quantize": "none"}), None)
        weft.attach(plain.model, adapter)
