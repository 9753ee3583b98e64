"""The peak of this process's memory."""

import resource
import sys
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory in use from now on, over what is in use now, in bytes: the GPU's, or on a CPU the process's.

    On Linux it is the resident set; elsewhere a peak cannot be forgotten, and one before now counts as in use.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        elif _STATUS.is_file():
            _FORGET.write_text("5", encoding="ascii")  # see proc(5)
            self._start = _status("VmRSS")
        else:
            self._start = _largest()

    def over_start(self) -> int:
        """The peak so far."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self._start
        # Not getrusage on Linux: its peak is the parent's in a process that was just started from one.
        return (_status("VmHWM") if _STATUS.is_file() else _largest()) - self._start


def _status(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def _largest() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
