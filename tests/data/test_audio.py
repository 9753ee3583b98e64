"""Speech data: what is read, how it is resampled, what is left out, and what a bad row is told."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset

from weft.data.audio import AudioDataset, Clip, Transcript, load_audio
from weft.errors import DataError

RATE = 16_000


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def letters(clip: Clip) -> Transcript:
    return Transcript([ord(letter) for letter in clip.text])


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def common_voice(tmp_path: Path) -> Path:
    """Three clips of 0.1, 0.2 and 0.3 seconds beside a table, as Common Voice lays them out."""
    (tmp_path / "clips").mkdir()
    for tenths in (1, 2, 3):
        soundfile.write(tmp_path / f"clips/{tenths}.flac", tone(tenths / 10, 8000), 8000)
    rows = [{"client_id": "a", "path": f"{n}.flac", "sentence": f"number {n}"} for n in (1, 2, 3)]
    return table(tmp_path / "train.tsv", rows)


def load(source: Path, **options: Any) -> AudioDataset:
    return load_audio(source, RATE, letters, **options)


def test_common_voice_is_read_without_a_setting(common_voice: Path) -> None:
    data = load(common_voice)
    assert [clip.text for clip in data.clips] == ["number 1", "number 2", "number 3"]
    assert str(data.report) == "3 clips, 0.0 minutes, 24 tokens learned"
    assert data.report.seconds == pytest.approx(0.6)
    assert [len(data[i]["audio"]) for i in range(3)] == data.lengths == [1600, 3200, 4800]
    assert data[1]["labels"] == [ord(letter) for letter in "number 2"]


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_stays_that_tone_at_another_rate(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5, rate), rate, subtype="FLOAT")
    data = load(table(tmp_path / "d.csv", [{"audio": "a.wav", "text": "a"}]))
    heard, expected = data[0]["audio"], tone(0.5, RATE)
    assert heard.dtype == np.float32
    assert data.lengths == [len(heard)] == [len(expected)]
    inside = slice(400, -400)  # the ends ring
    assert np.abs(heard - expected)[inside].max() < 2e-3


def test_what_a_lower_rate_cannot_hold_is_filtered_out_and_does_not_fold_back(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5, 48_000, hertz=11_000), 48_000, subtype="FLOAT")
    heard = load(table(tmp_path / "d.csv", [{"audio": "a.wav", "text": "a"}]))[0]["audio"]
    assert np.abs(heard[400:-400]).max() < 2e-3


@pytest.mark.parametrize(("suffix", "atol"), [("wav", 1e-4), ("flac", 1e-4), ("mp3", 2e-2), ("ogg", 2e-2)])
def test_every_format_is_mixed_down_to_mono(tmp_path: Path, suffix: str, atol: float) -> None:
    left = tone(0.5, RATE)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([left, np.zeros_like(left)], axis=1), RATE)
    data = load(table(tmp_path / "d.jsonl", [{"file": str(tmp_path / f"a.{suffix}"), "transcript": "a"}]))
    heard = data[0]["audio"]
    assert heard.ndim == 1
    assert np.abs(heard[2000:6000] - left[2000:6000] / 2).max() < atol


def test_audio_that_datasets_holds_is_read_again_when_it_is_asked_for(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.1, RATE), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    rows = Dataset.from_list([{"audio": {"bytes": data, "path": None}, "text": "a"}]).cast_column("audio", Audio())
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "d.parquet")
    for source in ("saved", "d.parquet"):
        assert np.allclose(load(tmp_path / source)[0]["audio"], tone(0.1, RATE), atol=1e-4)
    clip = load(tmp_path / "saved").clips[0]
    assert data not in [cell.cell_contents for cell in clip.source.__closure__]  # type: ignore[union-attr]


def test_samples_in_the_table_itself(tmp_path: Path) -> None:
    samples = tone(0.01, 8000).tolist()
    rows = [
        {"audio": {"array": samples, "sampling_rate": 8000}, "text": "mono"},
        {"audio": {"array": [samples, [0.0] * len(samples)], "sampling_rate": 8000}, "text": "stereo"},
    ]
    data = load(table(tmp_path / "d.jsonl", rows))
    assert np.allclose(data[0]["audio"], 2 * data[1]["audio"], atol=1e-6)
    assert data.lengths == [160, 160]


def test_long_clips_are_left_out_or_refused_and_never_cut(common_voice: Path) -> None:
    data = load(common_voice, max_seconds=0.2)
    assert [clip.text for clip in data.clips] == ["number 1", "number 2"]
    assert data.report.dropped == 1
    assert "1 clips too long" in str(data.report)
    with pytest.raises(DataError, match=r"train.tsv line 4: 0.30 seconds, and at most 0.2 are taken; cut the clip up"):
        load(common_voice, max_seconds=0.2, long_clips="error")
    with pytest.raises(DataError, match="all 3 clips are too long"):
        load(common_voice, max_seconds=0.05)


def test_a_transcript_that_cannot_be_learned_whole_counts_as_long(common_voice: Path) -> None:
    def encode(clip: Clip) -> Transcript:
        return Transcript([1], obstacle="8 tokens, and the decoder holds 4" if "2" in clip.text else None)

    assert len(load_audio(common_voice, RATE, encode)) == 2
    with pytest.raises(DataError, match="line 3: 8 tokens, and the decoder holds 4"):
        load_audio(common_voice, RATE, encode, long_clips="error")


def test_fewer_hours_are_a_part_of_more(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.125, RATE), RATE)
    source = table(tmp_path / "d.csv", [{"audio": "a.wav", "text": str(n)} for n in range(50)])

    def texts(hours: float, seed: int = 0) -> list[str]:
        return [clip.text for clip in load(source, hours=hours, seed=seed).clips]

    one, two = texts(1 / 3600), texts(2 / 3600)
    assert len(one) == 8
    assert len(two) == 16
    assert set(one) < set(two)
    assert one == sorted(one, key=int) != [str(n) for n in range(8)]
    assert set(one) != set(texts(1 / 3600, seed=1))
    assert len(texts(1)) == 50


def test_a_share_is_held_out(common_voice: Path) -> None:
    rest, held = load(common_voice).split(0.3, seed=1)
    assert len(rest) == 2
    assert len(held) == 1
    assert {clip.text for clip in (*rest.clips, *held.clips)} == {"number 1", "number 2", "number 3"}
    with pytest.raises(DataError, match="one clip cannot be split"):
        held.split(0.5, seed=1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"audio": "none.wav", "text": "a"}], {}, r"d.jsonl line 1: there is no audio file none.wav in .* or .*clips"),
        ([{"audio": "/none.wav", "text": "a"}], {}, r"line 1: there is no audio file /none.wav there"),
        ([{"audio": "text.wav", "text": "a"}], {}, r"line 1: the audio .*text.wav cannot be read: Format not recog"),
        ([{"audio": "empty.wav", "text": "a"}], {}, r"line 1: the audio .*empty.wav is empty"),
        ([{"audio": "a.wav", "text": "a"}, {"audio": "a.wav", "text": " "}], {}, r"line 2: the transcript .* is emp"),
        ([{"audio": "a.wav", "text": "a"}, {"audio": "a.wav"}], {}, r"line 2: there is nothing in the column 'text'"),
        ([{"audio": "a.wav", "text": 7}], {}, r"line 1: expected a transcript in the column 'text', found 7"),
        ([{"audio": 7, "text": "a"}], {}, r"line 1: expected a path in the column 'audio', or a mapping .* found 7"),
        ([{"audio": {"x": 1}, "text": "a"}], {}, r"line 1: expected a path .* found \{'x': None\}"),
        ([{"sound": "a.wav", "text": "a"}], {}, r"expected the column 'audio' or 'path' .*found 'sound', 'text'"),
        ([{"audio": "a.wav", "words": "a"}], {}, r"'sentence' or .* found 'audio', 'words'.*with transcript_column"),
        ([{"audio": "a.wav", "text": "a"}], {"audio_column": "adio"}, r"the column 'adio', found .* with audio_column"),
        ([{"audio": {"array": "x", "sampling_rate": 8}, "text": "a"}], {}, r"'array' does not hold numbers"),
        ([{"audio": {"array": [], "sampling_rate": 8}, "text": "a"}], {}, r"expected an 'array' of shape .* \(0,\)"),
        ([], {}, "d.jsonl: the data set is empty"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.1, RATE), RATE)
    soundfile.write(tmp_path / "empty.wav", tone(0.0, RATE), RATE)
    (tmp_path / "text.wav").write_text("these are words")
    with pytest.raises(DataError, match=message):
        load(table(tmp_path / "d.jsonl", rows), **options)


def test_samples_that_are_no_numbers_are_found_when_they_are_read(tmp_path: Path) -> None:
    rows = [{"audio": {"array": [0.0, float("nan")], "sampling_rate": 8000}, "text": "a"}]
    data = load(table(tmp_path / "d.jsonl", rows))
    with pytest.raises(DataError, match="line 1: the audio holds samples that are not finite"):
        data[0]


def test_a_file_that_goes_away_is_named(common_voice: Path) -> None:
    data = load(common_voice)
    (common_voice.parent / "clips/2.flac").unlink()
    with pytest.raises(DataError, match=r"train.tsv line 3: the audio .*2.flac cannot be read"):
        data[1]
