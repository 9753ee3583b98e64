"""Where the library is, unless a place is named."""

import os
import sys
from pathlib import Path

VARIABLE = "WEFT_LIBRARY"


def default_place() -> Path:
    """``$WEFT_LIBRARY``, else ``weft/library`` in the folder in which this system keeps a user's data."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else _user_data() / "weft" / "library"


def _user_data() -> Path:
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
