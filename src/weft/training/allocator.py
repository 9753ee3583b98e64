"""The C library's memory during training on a CPU: what one step frees is kept for the next.

glibc gives large blocks back to the system as soon as they are freed, and every step asks for its activations anew: the
system must then find, clear and map each of their pages again. Kept, a run is about a tenth faster, at the same peak.
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, from now on; returns whether it will.

    Only glibc is told so, and only if the environment (`MALLOC_TRIM_THRESHOLD_` and the like) does not say otherwise.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
