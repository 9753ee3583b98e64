"""The base model that comes with weft, for demonstrations and tests."""

from pathlib import Path


def bundled_base() -> Path:
    """The folder of the bundled base model: a Llama of 6 million parameters that transformers loads."""
    return Path(__file__).parent / "base"
