"""Tiny recognizers and clips, made once for the tests that use them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq

from weft.tasks.tiny import speech


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(speech.whisper(tmp_path_factory.mktemp("whisper"))["base"])


@pytest.fixture(scope="session")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(speech.wav2vec2(tmp_path_factory.mktemp("wav2vec2"))["base"])


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of train.tsv, test.tsv and their clips of half a second or one."""
    folder = tmp_path_factory.mktemp("clips")
    speech.speech(folder)
    return folder


def altered(source: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a base, its weights random again, with other settings: of its model, and of its padding."""
    shutil.copytree(source, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | settings))
    config = AutoConfig.from_pretrained(folder)
    family = AutoModelForCTC if config.model_type == "wav2vec2" else AutoModelForSpeechSeq2Seq
    family.from_config(config).save_pretrained(folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["feature_extractor"]["return_attention_mask"] = config.model_type == "wav2vec2"
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder
