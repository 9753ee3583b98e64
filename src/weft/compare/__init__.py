"""`compare`: ways of fine-tuning against each other, on one task and under one budget.

A way is a `Method`, a named change of a run's settings, registered in `methods`. Each run is made in a process of its
own, so that its peak of memory is its own; each way gets a small sweep of learning rates, and several seeds.
"""

from weft.compare.comparison import Comparison, Sweep, compare
from weft.compare.methods import Method, methods

__all__ = ["Comparison", "Method", "Sweep", "compare", "methods"]
