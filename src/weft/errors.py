"""Every error that weft raises on purpose.

    WeftError
    ├── ConfigError         a configuration that cannot be: the field, what was found, what is allowed
    ├── TargetError         a pattern or module that cannot be adapted, or that matched nothing
    ├── StateError          a call that does not fit what is attached, active or merged now
    ├── BaseMismatchError   an adapter met a base other than the one it was made for
    ├── BindingError        tensors of an adapter that did not fit the model, all listed at once
    ├── MergeError          weights that cannot be merged, or restored
    ├── FormatError         a file that is not what it says, or that weft cannot represent
    ├── DataError           a data set, or a row of it, that cannot be used
    └── TrainingError       a run that would train nothing, or went wrong

Each message names the thing, says what was found and what was expected, and what to do. The command
line prints the message alone and exits with 2.
"""

import difflib
from collections.abc import Iterable


class WeftError(Exception):
    """The base of every error that weft raises on purpose."""


class ConfigError(WeftError, ValueError):
    """A configuration that cannot be."""


class TargetError(WeftError, ValueError):
    """A pattern that matched nothing, or a module that cannot be adapted."""


class StateError(WeftError, RuntimeError):
    """A call that does not fit what is attached, active or merged now."""


class BaseMismatchError(WeftError, ValueError):
    """An adapter met a base other than the one it was made for."""


class BindingError(WeftError, ValueError):
    """Tensors of an adapter that did not fit the model."""


class MergeError(WeftError, RuntimeError):
    """Weights that cannot be merged, or restored."""


class FormatError(WeftError, ValueError):
    """A file that is not what it says, or that weft cannot represent."""


class DataError(WeftError, ValueError):
    """A data set, or a row of it, that cannot be used."""


class TrainingError(WeftError, RuntimeError):
    """A run that would train nothing, or went wrong."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The names closest to `name`, as the end of a message: ``"; did you mean 'a' or 'b'?"``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
