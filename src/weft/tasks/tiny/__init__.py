"""Stand-ins: small generated bases and data on which any run can be tried in seconds, with nothing fetched.

A stand-in base is one function, registered in `bases` under the name that a run's setting `stand_in` gives; stand-in
data are one function, registered in `data` under the name of the task. So every base goes with every task that it fits.
"""

from weft.tasks.tiny import classify, images, language, speech
from weft.tasks.tiny.registry import bases, build, data
from weft.tasks.tiny.run import tiny_run

__all__ = ["bases", "build", "classify", "data", "images", "language", "speech", "tiny_run"]
