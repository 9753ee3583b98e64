"""The settings of runs on speech: clips with their transcripts."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.training.config import RunConfig, run_settings

if TYPE_CHECKING:
    from weft.training.task import Task


@run_settings.register("speech")
class SpeechRun(RunConfig):
    """A speech recognizer (Whisper, or a wav2vec 2.0 kind with a CTC head) learns the transcripts of clips."""

    task: Literal["speech"] = Field("speech", description="What is learned.")

    audio_column: str | None = Field(
        None,
        description="The column of audio: paths, from the table's folder or clips/ in it, or what datasets makes of "
        "audio. Default: audio, path, file or file_name, whichever is there.",
    )
    transcript_column: str | None = Field(
        None,
        description="The column of transcripts. Default: sentence, transcript, transcription or text, whichever is "
        "there.",
    )
    language: str | None = Field(
        None, description="The language spoken, such as sv or swedish. A multilingual Whisper needs it."
    )
    speech_task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="What Whisper is to write: the words said, or them in English."
    )
    max_seconds: float | None = Field(
        None, gt=0, description="Seconds in a clip at most. Default: Whisper's window of 30; CTC: no limit."
    )
    long_clips: Literal["drop", "error"] = Field(
        "drop",
        description="Longer clips, and those whose transcript cannot be learned whole: drop, or stop with an error.",
    )
    hours: float | None = Field(
        None, gt=0, description="Train on so many hours, drawn by the seed; fewer are a part of more. Default: all."
    )

    normalize_text: bool = Field(
        True,
        description="Compare answers and references as Whisper's authors do, without case and punctuation; in English "
        "with spellings, contractions and numbers made one.",
    )
    transcribe_rows: int | None = Field(
        None, ge=1, description="Held-out clips, spread evenly, to transcribe at each evaluation. Default: all."
    )

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of speech."""
        from weft.tasks.speech import SpeechTask

        return SpeechTask
