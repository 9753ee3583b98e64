"""How factors start. One file an initializer; each registers a function for its type in `weft.config`."""

from weft.init import gaussian, kaiming, pissa
from weft.init.start import Start, start_factors

__all__ = ["Start", "gaussian", "kaiming", "pissa", "start_factors"]
