"""A folder that appears complete, or not at all."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.errors import ConfigError, FormatError
from weft.formats.atomic import swap


def check_output(output: Path, overwrite: bool, keep: Iterable[Path]) -> None:
    """Raises ConfigError if a new folder may not be put at `output`.

    Args:
        output: where it would go.
        overwrite: what stands there may be replaced.
        keep: what must not be touched.
    """
    for kept in keep:
        if kept.resolve().is_relative_to(output.resolve()):
            raise ConfigError(f"output: {output} is, or holds, {kept}, which is read from; name another folder")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output: {output} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"output: {output} is not empty; name another folder, or pass overwrite (--overwrite)")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place at the end of the block, or vanishes on an error.

    Raises:
        FormatError: the disk did not take it; what was at `output` before is there as it was.
    """
    temporary: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        temporary.chmod(0o755)  # mkdtemp makes it private
        yield temporary
        if output.exists():
            shutil.rmtree(swap(temporary, output), ignore_errors=True)
        else:
            temporary.rename(output)
    except OSError as error:
        raise FormatError(
            f"cannot write to {output}: {error.strerror or error}; what was there before is there as it was"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
