"""Speech data: clips with their transcripts. A clip is decoded when it is asked for; its header gives its length.

A table (TSV as of Common Voice, CSV, JSONL, Parquet, or what `datasets` reads) names a file, or holds the audio itself,
and the words said in it. Files are read by soundfile (WAV, FLAC, MP3, Ogg, ...), mixed down to mono, and resampled by
scipy's polyphase filter: exact for any pair of rates, the same on every machine, and in float32 throughout.
"""

import io
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch.utils.data import Dataset

from weft.data.rows import Row, read_rows
from weft.errors import DataError, nearest

Samples = NDArray[np.float32]

# The names that data sets give to the two columns; the first one found is taken.
AUDIO_COLUMNS = ("audio", "path", "file", "file_name")
TRANSCRIPT_COLUMNS = ("sentence", "transcript", "transcription", "text")

CLIPS = "clips"  # the folder beside the table in which Common Voice keeps its files


@dataclass(frozen=True)
class Clip:
    """One recording and what is said in it.

    Attributes:
        source: a file, a function that gives a file's bytes, or the samples (n), in [-1, 1].
        frames: samples of a channel.
        rate: samples a second.
        text: the transcript, without outer white space.
        where: the row that it comes from, in words.
    """

    source: Path | Callable[[], bytes] | Samples
    frames: int
    rate: int
    text: str
    where: str

    @property
    def seconds(self) -> float:
        """The clip's length."""
        return self.frames / self.rate

    def samples_at(self, rate: int) -> int:
        """How many samples `samples` will give."""
        return -(-self.frames * rate // self.rate)

    def samples(self, rate: int) -> Samples:
        """The clip in mono at `rate` samples a second: (n), float32.

        Raises:
            DataError: the file cannot be decoded, is longer than its header says, or holds what is no number.
        """
        if isinstance(self.source, np.ndarray):
            heard = self.source
        else:
            file = self.source if isinstance(self.source, Path) else io.BytesIO(self.source())
            try:
                heard = soundfile.read(file, dtype="float32", always_2d=True)[0].mean(axis=1)
            except (soundfile.SoundFileError, OSError) as error:
                raise _unreadable(self.where, self.source, error) from error
        if len(heard) > self.frames:
            raise DataError(
                f"{self.where}: the audio has {len(heard)} samples, and its header says {self.frames}; convert the file"
            )
        if not np.isfinite(heard).all():
            raise DataError(f"{self.where}: the audio holds samples that are not finite numbers")
        if rate == self.rate:
            return heard
        common = math.gcd(rate, self.rate)
        resampled: Samples = resample_poly(heard, rate // common, self.rate // common)
        return resampled


@dataclass(frozen=True)
class Transcript:
    """A clip's words as a model learns them.

    Attributes:
        ids: token ids.
        unknown: characters that the vocabulary lacks, and that are left out.
        obstacle: why the model cannot learn all of them from this clip, in words; None if it can.
    """

    ids: Sequence[int]
    unknown: int = 0
    obstacle: str | None = None


@dataclass(frozen=True)
class AudioReport:
    """What became of a data set's clips.

    Attributes:
        rows: clips kept.
        seconds: their length in all.
        dropped: clips left out, being too long, or too short for their transcript.
        label_tokens: tokens on which the loss is taken.
        unknown_characters: characters of transcripts that the base's vocabulary lacks, and that are not learned.
    """

    rows: int
    seconds: float
    dropped: int
    label_tokens: int
    unknown_characters: int

    def __str__(self) -> str:
        hours, minutes = self.seconds / 3600, self.seconds / 60
        length = f"{hours:,.2f} hours" if hours >= 1 else f"{minutes:.1f} minutes"
        text = f"{self.rows:,} clips, {length}, {self.label_tokens:,} tokens learned"
        if self.dropped:
            text += f"; {self.dropped:,} clips too long, or with too long a transcript, and left out"
        if self.unknown_characters:
            text += f"; {self.unknown_characters:,} characters that the base's vocabulary lacks left out"
        return text


class AudioDataset(Dataset[dict[str, Any]]):
    """Clips on disk; an item, {"audio": (n) float32, "labels": [token ids]}, is decoded when it is asked for."""

    def __init__(self, clips: list[Clip], transcripts: list[Transcript], rate: int, dropped: int = 0) -> None:
        self.clips, self.transcripts, self.rate = clips, transcripts, rate
        self.report = AudioReport(
            rows=len(clips),
            seconds=sum(clip.seconds for clip in clips),
            dropped=dropped,
            label_tokens=sum(len(transcript.ids) for transcript in transcripts),
            unknown_characters=sum(transcript.unknown for transcript in transcripts),
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"audio": self.clips[index].samples(self.rate), "labels": list(self.transcripts[index].ids)}

    @property
    def lengths(self) -> list[int]:
        """Samples in each item, known without decoding any."""
        return [clip.samples_at(self.rate) for clip in self.clips]

    def split(self, share: float, seed: int) -> tuple["AudioDataset", "AudioDataset"]:
        """Two data sets: the rest, and a share chosen at random by the seed (one clip at least).

        Raises:
            DataError: there are fewer than two clips.
        """
        if len(self) < 2:
            raise DataError("one clip cannot be split into training and evaluation; give an evaluation file")
        count = min(max(1, round(share * len(self))), len(self) - 1)
        held = set(random.Random(seed).sample(range(len(self)), count))

        def part(chosen: list[int], dropped: int = 0) -> AudioDataset:
            clips, transcripts = [self.clips[i] for i in chosen], [self.transcripts[i] for i in chosen]
            return AudioDataset(clips, transcripts, self.rate, dropped)

        return part([i for i in range(len(self)) if i not in held], self.report.dropped), part(sorted(held))


def load_audio(
    source: str | Path,
    rate: int,
    encode: Callable[[Clip], Transcript],
    *,
    split: str = "train",
    audio_column: str | None = None,
    transcript_column: str | None = None,
    max_seconds: float | None = None,
    long_clips: Literal["drop", "error"] = "drop",
    hours: float | None = None,
    seed: int = 0,
) -> AudioDataset:
    """Reads a speech data set.

    Args:
        source: what `read_rows` takes. Its paths start from the table's folder, or from ``clips`` in it.
        rate: samples a second that the model takes.
        encode: a clip's transcript as the model learns it.
        split: the split to read, where there are several.
        audio_column: of paths, or of what `datasets` makes of audio: {"array", "sampling_rate"}, or {"bytes", "path"}.
            None: the first of `AUDIO_COLUMNS` that is there.
        transcript_column: None: the first of `TRANSCRIPT_COLUMNS` that is there.
        max_seconds: of a clip at most; None for no limit.
        long_clips: what to do with longer clips, and with those whose transcript cannot be learned whole: "drop" them,
            or raise an "error". None is ever cut, since the words would no longer be those of the audio.
        hours: stop when the clips kept have this length in all. They are taken in an order drawn by the seed, so that
            fewer hours are a part of more. None for all.
        seed: of that order.

    Raises:
        DataError: nothing to read, a missing column, an empty transcript, or a file that is missing or is no audio;
            the message names the file and line.
    """
    found = list(_entries(source, split, audio_column, transcript_column))
    order = list(range(len(found)))
    if hours is not None:
        random.Random(seed).shuffle(order)
    kept: dict[int, tuple[Clip, Transcript]] = {}
    dropped, seconds = 0, 0.0
    for place in order:
        if hours is not None and seconds >= 3600 * hours:
            break
        clip = found[place].clip()
        transcript = encode(clip)
        obstacle = transcript.obstacle
        if max_seconds is not None and clip.seconds > max_seconds:
            obstacle = f"{clip.seconds:.2f} seconds, and at most {max_seconds:g} are taken"
        if obstacle is None:
            seconds += clip.seconds
            kept[place] = clip, Transcript(array("i", transcript.ids), transcript.unknown)
        elif long_clips == "error":
            raise DataError(f"{clip.where}: {obstacle}; cut the clip up, or let long_clips be 'drop'")
        else:
            dropped += 1
    if not kept:
        raise DataError(
            f"{source}: all {dropped} clips are too long, or their transcripts; let long_clips be 'error' to see how"
        )
    clips, transcripts = zip(*(kept[place] for place in sorted(kept)), strict=True)
    return AudioDataset(list(clips), list(transcripts), rate, dropped)


@dataclass(frozen=True)
class _Entry:
    """A row of the table, whose audio was not looked at yet."""

    source: Path | Callable[[], bytes] | tuple[Samples, int]
    text: str
    where: str

    def clip(self) -> Clip:
        """With the length that the file's header gives."""
        if isinstance(self.source, tuple):
            samples, rate = self.source
            return Clip(samples, len(samples), rate, self.text, self.where)
        try:
            header = soundfile.info(str(self.source) if isinstance(self.source, Path) else io.BytesIO(self.source()))
        except (soundfile.SoundFileError, OSError) as error:
            raise _unreadable(self.where, self.source, error) from error
        if header.frames < 1:
            raise DataError(f"{self.where}: the audio{_named(self.source)} is empty")
        return Clip(self.source, header.frames, header.samplerate, self.text, self.where)


def _entries(source: str | Path, split: str, audio: str | None, transcript: str | None) -> Iterator[_Entry]:
    path = Path(source).expanduser()
    folder = path.parent if path.is_file() else path if path.is_dir() else Path()
    columns: tuple[str, str] | None = None
    for row in read_rows(source, split):
        if columns is None:
            columns = (
                _column(row, audio, AUDIO_COLUMNS, "audio_column"),
                _column(row, transcript, TRANSCRIPT_COLUMNS, "transcript_column"),
            )
        for column in columns:
            if column not in row.values:
                raise DataError(f"{row.where}: there is nothing in the column {column!r}")
        text = row.values[columns[1]]
        if not isinstance(text, str):
            raise DataError(f"{row.where}: expected a transcript in the column {columns[1]!r}, found {text!r}")
        if not text.strip():
            raise DataError(f"{row.where}: the transcript in the column {columns[1]!r} is empty")
        yield _Entry(_source(row, columns[0], folder), text.strip(), row.where)
    if columns is None:
        raise DataError(f"{source}: the data set is empty")


def _column(first: Row, name: str | None, known: Sequence[str], setting: str) -> str:
    """The column that is named, or the first known one that a row has."""
    if name is not None:
        known = (name,)
    for each in known:
        if each in first.values:
            return each
    hint = next((text for column in first.values if (text := nearest(column, known, 1))), "")
    found = ", ".join(map(repr, first.values)) or "none"
    raise DataError(
        f"{first.where}: expected the column {' or '.join(map(repr, known))}, found {found}{hint}. "
        f"Name yours with {setting}"
    )


def _source(row: Row, column: str, folder: Path) -> Path | Callable[[], bytes] | tuple[Samples, int]:
    """Where the audio of a row is: a file, what gives a file's bytes, or samples with their rate."""
    value = row.values[column]
    if isinstance(value, str):
        return _file(value, folder, row.where)
    if isinstance(value, Mapping):
        samples, rate, data, path = (value.get(key) for key in ("array", "sampling_rate", "bytes", "path"))
        if samples is not None and isinstance(rate, int):
            return _mono(samples, row.where), rate
        if isinstance(data, bytes):
            again = row.again
            return (lambda: data) if again is None else (lambda: bytes(again()[column]["bytes"]))
        if isinstance(path, str):
            return _file(path, folder, row.where)
        value = dict.fromkeys(value)  # what a message can show
    raise DataError(
        f"{row.where}: expected a path in the column {column!r}, or a mapping with 'array' and 'sampling_rate', or "
        f"with 'bytes' or 'path'; found {value!r}"
    )


def _file(name: str, folder: Path, where: str) -> Path:
    for path in (folder / name, folder / CLIPS / name):
        if path.is_file():
            return path
    places = f"in {folder} or {folder / CLIPS}" if not Path(name).is_absolute() else "there"
    raise DataError(f"{where}: there is no audio file {name} {places}")


def _mono(values: Any, where: str) -> Samples:
    """Samples (n) or (channels, n) as (n)."""
    try:
        samples = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the audio's 'array' does not hold numbers: {error}") from error
    if samples.ndim == 2:
        samples = samples.mean(axis=0)
    if samples.ndim != 1 or not len(samples):
        raise DataError(
            f"{where}: expected an 'array' of shape (samples) or (channels, samples), found {samples.shape}"
        )
    return samples


def _unreadable(where: str, source: Path | Callable[[], bytes] | Samples, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rpartition(": ")[2].rstrip(".")
    return DataError(f"{where}: the audio{_named(source)} cannot be read: {reason}")


def _named(source: Path | Callable[[], bytes] | Samples) -> str:
    return f" {source}" if isinstance(source, Path) else ""
